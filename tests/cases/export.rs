//! A closure as one file, on a stick or through a pipe.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::host::skipped;
use crate::support::place::list;
use crate::support::{Place, Run};

const TWO: &str = r#"
lower = sh("lower", "echo deep > $out/usr/lower")
upper = sh("upper", "cat /usr/lower > $out/usr/upper; dd if=/dev/urandom of=$out/usr/big bs=1k count=600", tools = [lower], run = [lower])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [upper, applets])
return {"": root, "lower": lower, "upper": upper}
"#;

/// A builder's place, its public key, and an export of its root.
fn exported() -> (Place, String, PathBuf) {
    let place = Place::new(TWO);
    let key = place.srp(&["key", "generate", "builder-1"]).succeeded().stdout.trim_end().to_owned();
    place.realise("t.x");
    let file = place.path("stick/root.srp");
    fs::create_dir(place.path("stick")).unwrap();
    let run = place.srp(&["export", "t.x", "--output", file.to_str().unwrap()]).succeeded();
    run.says(&["objects (", "signed by builder-1"]);
    (place, key, file)
}

fn name(path: &str) -> String {
    Path::new(path.trim_end()).file_name().unwrap().to_str().unwrap().to_owned()
}

fn import(place: &Place, file: &Path) -> Run {
    place.srp(&["import", file.to_str().unwrap()])
}

/// The inodes of all trees: what is written again has others.
fn trees(place: &Place) -> Vec<(PathBuf, u64)> {
    use std::os::unix::fs::MetadataExt;
    let inode = |path: PathBuf| (path.clone(), fs::symlink_metadata(&path).unwrap().ino());
    list(&place.store().join("trees")).into_iter().map(inode).collect()
}

#[test]
fn a_pipe_brings_a_root_that_needs_no_build() {
    let (builder, key, file) = exported();
    let user = Place::new(TWO);
    user.srp(&["key", "trust", &key]).succeeded();
    let mut export = builder.command(&["export", "t.x", "t.x.lower"]);
    let mut export = export.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut import = user.command(&["import"]);
    let run = Run::of(import.stdin(export.stdout.take().unwrap())).succeeded();
    assert!(export.wait().unwrap().success());
    run.says(&["t.x: vouched for by builder-1", "0 were here"]);
    let built = builder.srp(&["realise", "t.x"]).succeeded().stdout;
    let realised = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(name(&realised.stdout), name(&built));
    assert_eq!(realised.built(), Vec::<&str>::new());
    user.srp(&["realise", "--no-build", "t.x.lower"]).succeeded();
    user.assert_tidy();
    builder.assert_tidy();
    // The same store exports the same bytes, and leaves nothing beside the file.
    let again = builder.path("stick/again.srp");
    builder.srp(&["export", "t.x", "-o", again.to_str().unwrap()]).succeeded();
    assert!(fs::read(&again).unwrap() == fs::read(&file).unwrap());
    assert_eq!(list(&builder.path("stick")), [again, file]);
}

#[test]
fn an_import_that_broke_off_is_begun_again_and_writes_only_what_is_missing() {
    let (builder, key, file) = exported();
    let bytes = fs::read(&file).unwrap();
    let user = Place::new(TWO);
    user.srp(&["key", "trust", &key]).succeeded();
    let cut = builder.path("cut.srp");
    fs::write(&cut, &bytes[..bytes.len() * 9 / 10]).unwrap();
    let run = import(&user, &cut).exited(1);
    run.says(&["ends in the middle: ", "of its ", "hint: import the whole of it"]);
    let before = trees(&user);
    assert!(!before.is_empty(), "what had come whole is kept");
    let run = import(&user, &file).succeeded();
    assert!(!run.stderr.contains(" 0 were here"), "{run}");
    let after = trees(&user);
    assert!(before.iter().all(|tree| after.contains(tree)), "{before:?} {after:?}");
    assert!(after.len() > before.len());
    import(&user, &file).succeeded().says(&["0 objects imported"]);
    assert_eq!(trees(&user), after);
    user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    user.assert_tidy();
}

#[test]
fn what_is_no_export_or_a_damaged_one_is_said_so() {
    let (builder, key, file) = exported();
    let bytes = fs::read(&file).unwrap();
    let user = Place::new(TWO);
    user.srp(&["key", "trust", &key]).succeeded();
    let bad = builder.path("bad.srp");
    let try_it = |bytes: &[u8]| {
        fs::write(&bad, bytes).unwrap();
        import(&user, &bad)
    };
    try_it(b"").exited(1).says(&["is no export", "srp export 1"]);
    try_it(b"srp export 2\nwhat comes then").exited(1).says(&["is no export"]);
    import(&user, Path::new("/nowhere")).exited(1).says(&["can't read /nowhere"]);
    import(&user, &builder.path("stick")).exited(1).says(&["Is a directory"]);
    for at in [40, 300, bytes.len() / 2, bytes.len() - 400] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let run = try_it(&bytes).exited(4);
        run.says(&[bad.to_str().unwrap(), "what had come whole before is kept"]);
    }
    import(&user, &file).succeeded();
    user.assert_tidy();
}

#[test]
fn nobody_is_believed_without_a_reason() {
    let (builder, key, file) = exported();
    let user = Place::new(TWO);
    let run = import(&user, &file).succeeded();
    run.says(&["warning: srp realise t.x will not take it: no trusted builder vouches for it"]);
    user.srp(&["realise", "--no-build", "t.x"]).exited(3);
    // The object is what its path says, whoever believes what.
    let path = import(&user, &file).succeeded().stdout;
    user.srp(&["closure", path.trim_end()]).succeeded();
    // Trust that comes later counts for what has come before.
    user.srp(&["key", "trust", &key]).succeeded();
    user.srp(&["realise", "--no-build", "t.x"]).succeeded();

    let unsigned = builder.path("unsigned.srp");
    let unsigned = unsigned.to_str().unwrap();
    builder.srp(&["export", "t.x", "--unsigned", "-o", unsigned]).succeeded();
    let user = Place::new(TWO);
    let run = user.srp(&["import", unsigned]).succeeded();
    run.says(&["were left out because nobody signed them; --trusted-unsigned keeps them"]);
    user.srp(&["realise", "--no-build", "t.x"]).exited(3);
    let run = user.srp(&["import", "--trusted-unsigned", "--json", unsigned]).succeeded();
    let answer: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(answer["imported"][0]["believed"], true, "{run}");
    user.srp(&["realise", "--no-build", "t.x"]).succeeded();
}

#[test]
fn a_terminal_gets_no_binary() {
    let place = Place::new(TWO);
    let terminal = || -> Stdio {
        let pty = nix::pty::openpty(None, None).unwrap();
        // The other end stays open, else the terminal would be gone.
        std::mem::forget::<OwnedFd>(pty.master);
        File::from(pty.slave).into()
    };
    let child = place.command(&["export", "t.x"]).stdout(terminal()).stderr(Stdio::piped()).spawn();
    let run = Run::from(child.unwrap().wait_with_output().unwrap()).exited(2);
    run.says(&["this is a terminal", "hint: give --output FILE"]);
    let run = Run::of(place.command(&["import"]).stdin(terminal())).exited(2);
    run.says(&["this is a terminal", "hint: name the file"]);
}

#[test]
fn a_full_disk_is_said_so_and_registers_nothing_half() {
    let (builder, key, file) = exported();
    let user = Place::new(TWO);
    user.srp(&["key", "trust", &key]).succeeded();
    // In a mount namespace of its own: 400 KiB for the store, and then enough.
    let script = "mkdir disk && mount -t tmpfs -o size=20m none disk || exit 77
        export SRP_ROOT=$PWD/disk/store
        head -c $((20 * 1024 * 1024 - 400 * 1024)) /dev/zero > disk/other || exit 78
        \"$@\" import \"$FILE\"; echo \"first: $?\"; ls -A disk/store/tmp
        rm disk/other
        \"$@\" import \"$FILE\" && \"$@\" realise --no-build t.x";
    let mut command = Command::new("unshare");
    user.surround(&mut command).args(["-Urm", "sh", "-c", script, "sh"]);
    let run = Run::of(command.arg(env!("CARGO_BIN_EXE_srp")).env("FILE", &file));
    if run.code == Some(77) || run.stderr.contains("unshare failed") {
        return skipped("an import to a full disk", "no file system can be mounted here");
    }
    let run = run.succeeded().says(&["No space left on device", "import again for the rest"]);
    assert!(run.stdout.starts_with("first: 1\n"), "{run}");
    drop(builder);
}
