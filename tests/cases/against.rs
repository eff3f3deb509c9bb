//! `srp audit --against` compares machines without building, and `--sign` makes a machine that has
//! rebuilt something a witness of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use srp_store::OpenTree;
use srp_store::cache::{Sealed, SecretKey, Statement};
use srp_store::ingest::{self, Rules};
use srp_store::{
    Access, Claim, Object, OutputName, Realisation, Registration, ResolvedHash, StaticHash, Store,
};

use crate::support::caches::{published_as, push, user_of};
use crate::support::host::{NOBODY, as_nobody, give, is_root, skipped};
use crate::support::place::list;
use crate::support::serving::Serving;
use crate::support::{Place, Run};

const TWO: &str = r#"
lower = sh("lower", "echo deep > $out/usr/lower; echo same > $out/usr/same")
upper = sh("upper", "cat /usr/lower > $out/usr/upper", tools = [lower], run = [lower])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [upper, applets])
return {"": root, "lower": lower, "upper": upper, "applets": applets}
"#;

/// The comparisons of a run by name, and the rest of the answer.
fn comparisons(run: &Run) -> (BTreeMap<String, Value>, Value) {
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run}"));
    assert_eq!(answer["format"], 1);
    let all = answer["comparisons"].as_array().unwrap().iter();
    (all.map(|it| (it["name"].as_str().unwrap().to_owned(), it.clone())).collect(), answer)
}

/// A machine whose commands run as some user.
struct Machine {
    place: Place,
    program: PathBuf,
    user: Option<u32>,
    key: String,
}

impl Machine {
    /// A machine with a key, that has realised everything.
    fn new(name: &str, user: Option<u32>) -> Machine {
        let place = Place::new(TWO);
        let program = match user {
            Some(user) => place.give_to(user),
            None => PathBuf::from(env!("CARGO_BIN_EXE_srp")),
        };
        place.open_to_all();
        let mut machine = Machine { place, program, user, key: String::new() };
        let key = machine.srp(&["key", "generate", name]).succeeded().stdout;
        machine.key = key.trim_end().to_owned();
        machine.srp(&["realise", "t.x"]).succeeded();
        machine
    }

    fn srp(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new(&self.program);
        self.place.surround(&mut command).args(arguments);
        match self.user {
            Some(_) => Run::of(as_nobody(&mut command)),
            None => Run::of(&mut command),
        }
    }

    fn cache(&self) -> String {
        self.place.path("cache").to_str().unwrap().to_owned()
    }

    fn push(&self) {
        self.srp(&["cache", "push", "t.x", "--to", &self.cache()]).succeeded();
    }

    /// Replaces what a derivation came out as by an object with another file, registered as if it
    /// had been built.
    fn tamper(&self, attr: &str, path: &str, content: &str) {
        let shown: Value = serde_json::from_str(&self.srp(&["show", attr]).stdout).unwrap();
        let hash: StaticHash = shown["derivation"].as_str().unwrap().parse().unwrap();
        let at = self.place.store();
        // A store belongs to one user.
        let ours = nix::unistd::geteuid().as_raw();
        if is_root() {
            give(&at, ours);
        }
        tamper(&at, &hash, path, content);
        if let Some(user) = self.user {
            give(&at, user);
        }
    }
}

fn tamper(at: &Path, hash: &StaticHash, path: &str, content: &str) {
    let store = Store::open(at, Access::WriteUnsynced).unwrap();
    let claim = store.claim(hash).unwrap().unwrap();
    let info = store.info(&claim.outputs[&OutputName::out()]).unwrap();
    let scratch = store.scratch().unwrap();
    let tree = scratch.path().join("tree");
    ingest::copy(&store.tree_path(&info.object.tree), &tree, Rules::default()).unwrap();
    let file = tree.join(path);
    for path in [file.parent().unwrap(), &file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(&file, content).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let listing =
        Arc::new(ingest::take(&OpenTree::open(&tree).unwrap(), Rules::default()).unwrap());
    let object = Object { tree: listing.digest(), ..info.object };
    let outputs: BTreeMap<_, _> = [(OutputName::out(), object.id())].into();
    let route = store.realisation(&claim.resolved).unwrap().unwrap().route;
    let mut registration = Registration::default();
    registration.object(&store, &object, listing, tree);
    let realisation = Realisation { outputs: outputs.clone(), route };
    registration.realisation(&store, &claim.resolved, &realisation);
    registration.claim(&store, hash, &Claim { outputs, ..claim });
    store.commit(registration).unwrap();
}

#[test]
fn two_machines_agree_until_one_of_them_is_tampered_with() {
    let user = is_root().then_some(NOBODY);
    if user.is_none() {
        skipped("machines of two users", "only root can become another one");
    }
    let (one, two) = (Machine::new("one", None), Machine::new("two", user));
    for machine in [&one, &two] {
        machine.push();
    }
    one.srp(&["key", "trust", &two.key]).succeeded();
    two.srp(&["key", "trust", &one.key]).succeeded();
    for (here, there) in [(&one, &two), (&two, &one)] {
        let arguments = ["audit", "t.x", "--closure", "--json", "--against", &there.cache()];
        let (compared, answer) = comparisons(&here.srp(&arguments).succeeded());
        let names: Vec<&str> = compared.keys().map(String::as_str).collect();
        assert_eq!(names, ["applets", "busybox-static", "lower", "root", "upper"]);
        for (name, comparison) in &compared {
            assert_eq!(comparison["status"], "agree", "{name}: {comparison:#}");
            let voice = &comparison["voices"][0];
            assert_eq!(
                (&voice["standing"], &voice["same_build"]),
                (&"trusted".into(), &true.into())
            );
            assert_eq!(comparison["voices"].as_array().unwrap().len(), 1);
        }
        assert_eq!(answer["unreachable"].as_array().unwrap().len(), 0);
    }

    two.tamper("t.x.lower", "usr/lower", "evil\n");
    for attr in ["t.x.upper", "t.x"] {
        two.srp(&["realise", attr]).succeeded();
    }
    two.push();
    let before = list(&one.place.store().join("objects"));
    let arguments = ["audit", "t.x.lower", "t.x.upper", "t.x.applets", "--against", &two.cache()];
    let run = one.srp(&arguments).exited(5).says(&["2 derivations are not what others say"]);
    for part in [
        "disagree: lower 1\n",
        "  two says otherwise (built; file://",
        "    /usr/lower: 5 bytes\n      line 1\n        -deep\n        +evil\n",
        "agree: applets 1\n  two says the same (built; file://",
        "1 agreed upon, 2 disagreed upon, 0 unknown",
    ] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    assert!(!run.stdout.contains("/usr/same"), "{run}");
    // Of the two only the lower one is the same build.
    let because = "    it is not the same build, because its input lower (";
    assert_eq!(run.stdout.matches(because).count(), 1, "{run}");
    assert_eq!(list(&one.place.store().join("objects")), before, "nothing is registered");
    one.place.assert_tidy();

    let arguments = ["audit", "t.x", "--closure", "--json", "--against", &two.cache()];
    let (compared, _) = comparisons(&one.srp(&arguments).exited(5));
    let status = |name: &str| compared[name]["status"].as_str().unwrap();
    assert_eq!(["lower", "upper", "root"].map(status), ["disagree"; 3]);
    assert_eq!(["applets", "busybox-static"].map(status), ["agree"; 2]);
    let because = compared["root"]["voices"][0]["because"].as_array().unwrap();
    let chain: Vec<&str> = because.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(chain, ["upper", "lower"], "it is followed to where it begins");
    let lower = &compared["lower"];
    assert_eq!(lower["voices"][0]["because"].as_array().unwrap().len(), 0);
    let (here, there) = (&lower["outputs"]["out"], &lower["voices"][0]["outputs"][0]);
    assert_eq!(there["agrees"], false);
    assert_ne!(here["object"], there["object"]);
    assert_ne!(here["tree"], there["tree"]);
    assert_eq!(lower["differences"][0]["changes"][0]["path"], "/usr/lower");
    assert_eq!(compared["upper"]["differences"].as_array().unwrap().len(), 0);

    // Without the content the listing still names the file; without that the digests are left.
    fs::remove_dir_all(two.place.path("cache/objects")).unwrap();
    let run = one.srp(&["audit", "t.x.lower", "--against", &two.cache()]).exited(5);
    assert!(run.stdout.contains("what differs is not known: no cache has "), "{run}");
}

#[test]
fn a_crowd_of_strangers_is_not_listened_to() {
    let (_builder, key, cache) = published_as("builder-1", TWO);
    let at = cache.to_str().unwrap();
    let user = user_of(TWO, &[], &[], "");
    user.srp(&["key", "trust", &key]).succeeded();
    user.realise("t.x.lower");
    let hash = user.show("t.x.lower")["derivation"].as_str().unwrap().to_owned();
    let directory = cache.join("realisations/static").join(hash);
    let file = list(&directory).remove(0);
    for number in 0..100u32 {
        // Keys that anybody could have made, before and after the one that is trusted.
        let key = blake3::hash(&number.to_le_bytes()).to_hex();
        let length = file.file_name().unwrap().len();
        fs::copy(&file, directory.join(&key[..length])).unwrap();
    }
    let arguments = ["audit", "t.x.lower", "--against", at];
    let run = user.srp(&arguments).succeeded().says(&["statements of 100 unknown keys", "only 64"]);
    assert!(run.stdout.contains("agree: lower 1\n  builder-1 says the same"), "{run}");
    // So many were asked for, and found to be another's.
    assert_eq!(run.stderr.matches("is signed by another key").count(), 64, "{run}");
}

#[test]
fn only_who_is_trusted_decides_and_a_wrong_signature_is_loud() {
    let (builder, key, cache) = published_as("builder-1", TWO);
    let at = cache.to_str().unwrap();
    let user = user_of(TWO, &[], &[], "");
    let against = ["audit", "t.x.lower", "--against", at];
    let run = user.srp(&against).exited(1).says(&["there is no store"]);
    assert_eq!(run.stdout, "");
    user.realise("t.x.upper");
    let run = user.srp(&["audit", "t.x", "--against", at]).exited(1);
    assert!(run.stdout.contains("unknown: root\n  it is not realised"), "{run}");

    let run = user.srp(&against).exited(1).says(&["no key is trusted"]);
    let untrusted = "of \"builder-1\", says the same (built; file://";
    assert!(run.stdout.contains("not counted: the untrusted key "), "{run}");
    assert!(run.stdout.contains(untrusted), "{run}");
    assert!(run.stdout.contains("nobody who is trusted says anything of it"), "{run}");
    user.srp(&["key", "trust", &key]).succeeded();
    let run = user.srp(&against).succeeded();
    assert!(run.stdout.contains("agree: lower 1\n  builder-1 says the same"), "{run}");

    // A cache that is down is warned of once, and takes nothing from the others.
    let down = "http://127.0.0.1:1/";
    let arguments = ["audit", "--closure", "t.x.upper", "--json", "--against", down];
    let run = user.srp(&arguments).exited(1).says(&["nothing could be compared"]);
    assert_eq!(run.stderr.matches("warning:").count(), 1, "{run}");
    // What nobody says anything of takes one line, and not one for each.
    let text = user.srp(&[&arguments[..3], &arguments[4..]].concat()).exited(1);
    assert_eq!(text.stdout.matches("nobody").count(), 1, "{text}");
    assert!(text.stdout.contains("applets 1, lower 1"), "{text}");
    let (compared, answer) = comparisons(&run);
    assert!(compared.values().all(|it| it["status"] == "unknown"), "{run}");
    assert_eq!(answer["unreachable"].as_array().unwrap().len(), 1);
    let run = user.srp(&[&arguments[..], &["--against", at]].concat()).succeeded();
    assert!(comparisons(&run).0.values().all(|it| it["status"] == "agree"), "{run}");

    user.srp(&["key", "revoke", "builder-1"]).succeeded();
    let run = user.srp(&against).exited(1);
    assert!(run.stdout.contains("not counted: the revoked key "), "{run}");
    user.srp(&["key", "trust", "--force", &key]).succeeded();
    for directory in ["static", "resolved"] {
        for hash in list(&cache.join("realisations").join(directory)) {
            for file in list(&hash) {
                let mut bytes = fs::read(&file).unwrap();
                bytes[60] ^= 1; // within the signature
                fs::write(&file, bytes).unwrap();
            }
        }
    }
    let run = user.srp(&against).exited(4).says(&["error:", "a wrong signature by builder-1", at]);
    assert!(run.stdout.contains("  WRONG SIGNATURE by builder-1 ("), "{run}");
    for option in ["--rounds=2", "--vary=user", "--sign"] {
        user.srp(&[&against[..], &[option]].concat()).exited(2);
    }

    // What a trusted key says has to make sense, too.
    let again = builder.path("again");
    push(&builder, again.to_str().unwrap());
    let secret = builder.path("home/.config/srp/keys/secret/builder-1");
    let secret = SecretKey::read(&secret).unwrap();
    let hash = user.show("t.x.lower")["derivation"].as_str().unwrap().to_owned();
    let file = again.join("realisations/static").join(hash);
    let file = file.join(secret.public().id().to_string());
    let said = Sealed::<Statement>::from_bytes(&fs::read(&file).unwrap()).unwrap();
    let mut statement = said.unverified().clone();
    statement.resolved = ResolvedHash::from_bytes([7; 32]);
    fs::write(&file, Sealed::new(statement, Some(&secret)).to_bytes()).unwrap();
    let run = user.srp(&["audit", "t.x.lower", "--against", again.to_str().unwrap()]).succeeded();
    assert!(run.stdout.contains("  builder-1 says what makes no sense (built; "), "{run}");
    assert!(run.stdout.contains("  builder-1 says the same (built; "), "by resolved hash: {run}");

    // What nobody signed counts from a cache that the user trusts outright.
    let unsigned = builder.path("unsigned").to_str().unwrap().to_owned();
    builder.srp(&["cache", "push", "t.x", "--to", &unsigned, "--unsigned"]).succeeded();
    let against = ["audit", "t.x.lower", "--against", &unsigned];
    let run = user.srp(&against).exited(1);
    assert!(run.stdout.contains("not counted: somebody who doesn't sign says the same"), "{run}");
    let path = "home/.config/srp/config.toml";
    let config = fs::read_to_string(user.path(path)).unwrap();
    let outright = format!("{config}[[caches]]\nurl = '{unsigned}'\ntrusted_unsigned = true\n");
    user.write(path, &outright);
    let run = user.srp(&against).succeeded();
    assert!(
        run.stdout.contains("the cache itself, which is trusted outright, says the same"),
        "{run}"
    );
}

#[test]
fn what_a_served_store_has_otherwise_is_looked_into() {
    // What differs is little of what there is.
    let random = r#"
random = sh("random", "dd if=/usr/bin/busybox of=$out/usr/big bs=64k count=16; od -An -tx1 -N16 /dev/urandom > $out/usr/f; ln -s f $out/usr/link")
return {"": random}
"#;
    let (builder, key, _) = published_as("builder-1", random);
    let user = user_of(random, &[], &[&key], "");
    user.realise("t.x");
    let served = Serving::of(&builder, &[]);
    let run = user.srp(&["audit", "t.x", "--against", served.url()]).exited(5);
    for part in ["disagree: random 1\n  builder-1 says otherwise (built; http://", "    /usr/f: "] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    let changed = run.stdout.lines().filter(|line| line.starts_with("    /")).count();
    assert_eq!(changed, 1, "{run}");
    assert!(run.stdout.contains("      line 1\n        -"), "{run}");
    user.assert_tidy();
}

#[test]
fn a_rebuild_that_was_signed_is_a_second_builder() {
    let (_builder, first, one) = published_as("builder-1", TWO);
    let one = one.to_str().unwrap();
    // Everything on the second machine is substituted.
    let second = user_of(TWO, &[one], &[&first], "");
    for attr in ["t.x.applets", "t.x.lower"] {
        let run = second.srp(&["realise", "--no-build", attr]).succeeded();
        assert_eq!(run.built(), Vec::<&str>::new());
    }
    second.srp(&["audit", "t.x.lower", "--sign"]).exited(1).says(&["there is no key to sign with"]);
    let key = second.srp(&["key", "generate", "builder-2"]).succeeded().stdout;
    let two = second.path("cache").to_str().unwrap().to_owned();
    let publish = || second.srp(&["cache", "push", "t.x.lower", "--to", &two]).succeeded();
    let third = || user_of(TWO, &[one, &two], &[&first, key.trim_end()], "threshold = 2");
    let refused = || {
        let run = third().srp(&["realise", "--no-build", "t.x.lower"]).exited(3);
        run.says(&["only 1 of the 2 different builders needed: builder-1"]);
    };
    assert!(publish().stdout.contains("1 stated as not built here"));
    refused();
    // That what others said is damaged makes it nobody's own.
    let said = list(&second.store().join("statements")).into_iter().flat_map(|it| list(&it));
    let said: Vec<_> = said.map(|path| (fs::read(&path).unwrap(), path)).collect();
    said.iter().for_each(|(_, path)| fs::write(path, "damaged").unwrap());
    assert!(publish().stdout.contains("1 stated as not built here"));
    said.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    // An audit that nobody signs is nobody's word.
    second.srp(&["audit", "t.x.lower", "--vary", "user"]).succeeded();
    assert!(publish().stdout.contains("1 stated as not built here"));

    let run = second.srp(&["audit", "t.x.lower", "--vary", "user", "--sign"]).succeeded();
    run.says(&["signed as built here by builder-2; srp cache push publishes it"]);
    refused();
    assert!(!publish().stdout.contains("not built here"));
    let run = third().srp(&["realise", "--no-build", "t.x.lower"]).succeeded();
    assert!(run.stdout.contains("-lower"), "{run}");

    // It is the word of who signed it, and nobody else's.
    second.srp(&["key", "generate", "builder-3"]).succeeded();
    let as_another = ["cache", "push", "t.x.lower", "--to", &two, "--key", "builder-3"];
    let run = second.srp(&as_another).succeeded();
    assert!(run.stdout.contains("1 stated as not built here"), "{run}");
    fs::remove_file(second.path("home/.config/srp/keys/secret/builder-3")).unwrap();

    // What lies in the store is worth nothing without its signature.
    let kept = list(&second.store().join("rebuilt")).remove(0);
    let kept = list(&kept).remove(0);
    let mut bytes = fs::read(&kept).unwrap();
    bytes[60] ^= 1;
    fs::write(&kept, bytes).unwrap();
    let run = publish().says(&["a statement is damaged, and left out"]);
    assert!(run.stdout.contains("1 stated as not built here"), "{run}");
    refused();
}

#[test]
fn who_composes_what_others_built_has_not_built_it() {
    let (_builder, first, one) = published_as("builder-1", TWO);
    let one = one.to_str().unwrap();
    let second = user_of(TWO, &[one], &[&first], "");
    let components = ["t.x.applets", "t.x.lower", "t.x.upper"];
    second.srp(&[&["realise", "--no-build"], &components[..]].concat()).succeeded();
    // The root itself it composes.
    second.srp(&["realise", "--no-substitute", "t.x"]).succeeded();
    let key = second.srp(&["key", "generate", "builder-2"]).succeeded().stdout;
    let two = second.path("cache").to_str().unwrap().to_owned();
    let publish = || second.srp(&["cache", "push", "t.x", "--to", &two]).succeeded();
    let third = || {
        let third = user_of(TWO, &[one, &two], &[&first, key.trim_end()], "threshold = 2");
        third.srp(&["realise", "--no-build", "t.x"])
    };
    let run = publish();
    assert!(run.stdout.contains(", 4 stated as not built here"), "{run}");
    third().exited(3).says(&["only 1 of the 2 different builders needed: builder-1"]);
    let audit = |attr| second.srp(&["audit", attr, "--vary", "user", "--sign"]).succeeded();
    for (attr, left) in components[..2].iter().zip([3, 2]) {
        audit(attr);
        let run = publish();
        assert!(run.stdout.contains(&format!(", {left} stated as not built here")), "{run}");
    }
    // Of one component alone the root is still builder-1's.
    third().exited(3).says(&["only 1 of the 2 different builders needed: builder-1"]);
    audit(components[2]);
    assert!(!publish().stdout.contains("not built here"));
    third().succeeded();
}

#[test]
fn what_differs_is_signed_by_nobody() {
    let place = Place::new(
        r#"return {"": sh("host", "hostname > $out/usr/f"), "same": sh("same", "echo 1 > $out/usr/f")}"#,
    );
    place.srp(&["key", "generate", "builder-1"]).succeeded();
    place.realise("t.x");
    place.srp(&["audit", "t.x", "--sign", "--vary", "hostname"]).exited(5);
    assert!(!place.store().join("rebuilt").exists());
    place.realise("t.x.same");
    place.srp(&["audit", "t.x.same", "--sign", "--vary", "hostname"]).succeeded();
    assert_eq!(list(&place.store().join("rebuilt")).len(), 1);
    place.srp(&["audit", "t.x", "--key", "builder-1"]).exited(2);
    push(&place, place.path("cache").to_str().unwrap());
}
