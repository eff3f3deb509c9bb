//! The sandbox of `srp shell`: the root that an object stands for, writable and gone afterwards.
//!
//! It is the sandbox of a build with another root and another command: the same namespaces, the
//! same user, no network. What it is not: a way to run things with the invoker's files or rights.
//! Nothing of the host is in it but what the caller binds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use srp_store::compose::{Composition, SYSROOT};
use srp_store::{
    Assurance, Digest, Entry, Found, ObjectId, ObjectName, ReferenceKind, Role, Store, StoreError,
    Triple,
};

use crate::build::skeleton;
use crate::request::RunnerSpec;
use crate::runner::Machine;
use crate::sandbox::{Bind, BinfmtHandler, RootMode, SandboxPlan, SkeletonEntry, Stdio};

/// Where the user of the sandbox is at home, as `/etc/passwd` in it says.
const HOME: &str = "/srp/build";
const PATH: &[&str] = &["usr/bin", "usr/sbin"];
/// What is run if nothing is asked for: the first of these that the root has.
const SHELLS: &[&str] = &["/usr/bin/bash", "/usr/bin/sh"];

/// The root of a shell, composed.
#[derive(Debug)]
pub struct Shell<'a> {
    store: &'a Store,
    object: ObjectName,
    root: Composition,
    sysroot: Option<Composition>,
    /// What the programs in it are for, as far as that is declared.
    architectures: BTreeSet<String>,
}

/// What a shell is asked for.
#[derive(Clone, Debug, Default)]
pub struct ShellRequest {
    /// The program and its arguments; empty for a shell.
    pub command: Vec<String>,
    /// The terminal's type.
    pub term: Option<String>,
    /// What of the host appears in it.
    pub binds: Vec<Bind>,
    /// Emulators by architecture: what the definitions say of each, and its object here.
    pub runners: BTreeMap<String, (RunnerSpec, ObjectId)>,
}

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// Nothing was asked for, and there is nothing to offer.
    #[error("{object} has no shell ({})", SHELLS.join(", "))]
    NoShell {
        /// What was to be entered.
        object: ObjectName,
    },
    /// The program is not there.
    #[error("{object} has no program {program}")]
    NoProgram {
        /// What was to be entered.
        object: ObjectName,
        /// The program as asked for.
        program: String,
    },
    /// Nothing here can run the program.
    #[error(
        "{program} is a program for another architecture than this machine's ({machine}), and the definitions have no runner for it"
    )]
    NoRunner {
        /// The program as asked for.
        program: String,
        /// This machine's architecture.
        machine: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused.
    #[error("can't read {}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl<'a> Shell<'a> {
    /// Composes what `object` and its `run` references provide: a stage by role, anything else at
    /// `/`. `host` is where the object's programs run, if that is known.
    pub fn new(
        store: &'a Store,
        object: &ObjectName,
        host: Option<&Triple>,
    ) -> Result<Shell<'a>, StoreError> {
        let closure = |ids: &[ObjectId]| store.closure_ids(ids, ReferenceKind::RUN);
        let mut architectures: BTreeSet<String> =
            host.map(|triple| triple.arch().to_owned()).into_iter().collect();
        let manifest = store.manifest(&store.info(&object.id)?.object)?;
        let (root, sysroot) = match manifest {
            None => (store.compose(&[closure(&[object.id])?])?, None),
            Some(manifest) => {
                let (tools, libs) = (manifest.role(Role::Tools), manifest.role(Role::Libs));
                architectures.insert(manifest.build.arch().to_owned());
                architectures.insert(manifest.host.arch().to_owned());
                let (tools, libs) = (closure(&tools)?, closure(&libs)?);
                if manifest.is_cross() {
                    let sysroot = (!libs.is_empty()).then(|| store.compose(&[libs])).transpose()?;
                    (store.compose(&[tools])?, sysroot)
                } else {
                    (store.compose(&[libs, tools])?, None)
                }
            }
        };
        Ok(Shell { store, object: object.clone(), root, sysroot, architectures })
    }

    /// The architectures whose programs are in the root, or are run first, and that only an
    /// emulator can run here. `known` are those for which there is one.
    pub fn emulated(
        &self,
        command: &[String],
        machine: &Machine,
        known: &BTreeMap<String, RunnerSpec>,
    ) -> Result<BTreeSet<String>, ShellError> {
        let start = self.start_of(&self.command(command)?[0])?;
        let wanted = |arch: &String| {
            let first = BinfmtHandler::for_arch(arch, "").is_some_and(|it| matches(&it, &start));
            !machine.runs_arch(arch) && (first || self.architectures.contains(arch))
        };
        Ok(known.keys().filter(|arch| wanted(arch)).cloned().collect())
    }

    fn trees(&self) -> BTreeSet<Digest> {
        let composed = [Some(&self.root), self.sysroot.as_ref()].into_iter().flatten();
        composed.flat_map(|root| root.providers().iter().map(|it| it.listing().digest())).collect()
    }

    /// The sandbox as a value. What it will show was verified lately, or is verified for it: see
    /// `assurance`.
    pub fn plan(
        &self,
        request: &ShellRequest,
        machine: &Machine,
        assurance: &Assurance<'_>,
    ) -> Result<SandboxPlan, ShellError> {
        let command = self.command(&request.command)?;
        let program = command[0].clone();
        let mut plan = SandboxPlan::new(command);
        let mut trees = self.trees();
        for (_, object) in request.runners.values() {
            trees.insert(self.store.info(object)?.object.tree);
        }
        if self.store.is_writable() {
            self.store.assure_all(&trees, assurance)?;
        } else {
            // Whoever can't keep what verification finds doesn't do it for each shell.
            trees.iter().try_for_each(|tree| self.store.refuse_damaged(tree))?;
        }
        plan.layers = self.store.layers(&self.root, assurance)?;
        if let Some(sysroot) = &self.sysroot {
            plan.sysroot = self.store.layers(sysroot, assurance)?;
        }
        plan.skeleton = skeleton(&self.root);
        plan.skeleton.extend(self.sysroot.iter().flat_map(loaders));
        plan.skeleton.push(SkeletonEntry::Dir { path: HOME.to_owned(), mode: 0o755 });
        plan.root = RootMode::Ephemeral;
        plan.stdio = Stdio::Relayed;
        plan.debuggers = true;
        plan.binds = request.binds.clone();
        plan.env = environment(request.term.as_deref());
        let start = self.start_of(&program)?;
        // A script, or what isn't to be seen from here, is left to the kernel.
        let mut runs = !start.starts_with(ELF) || is_native(machine, &start);
        for (arch, (runner, object)) in &request.runners {
            let object = self.store.info(object)?.object;
            let emulator = runner.program_in(&self.store.tree_path(&object.tree));
            let Some(handler) = BinfmtHandler::for_arch(arch, emulator) else { continue };
            runs |= matches(&handler, &start);
            plan.binfmt.push(handler);
            plan.env.extend(runner.environment());
        }
        if !runs {
            return Err(ShellError::NoRunner { program, machine: machine.arch().to_owned() });
        }
        Ok(plan)
    }

    /// The command that was asked for, or a shell; its program is in the root.
    fn command(&self, asked: &[String]) -> Result<Vec<String>, ShellError> {
        let object = || self.object.clone();
        match asked.first() {
            Some(program) if self.locate(program).is_some() => Ok(asked.to_vec()),
            // What is bound or made by the command before can't be seen from here.
            Some(program) if program.contains('/') => Ok(asked.to_vec()),
            Some(program) => {
                Err(ShellError::NoProgram { object: object(), program: program.clone() })
            }
            None => SHELLS
                .iter()
                .find(|shell| self.locate(shell).is_some())
                .map(|shell| vec![(*shell).to_owned()])
                .ok_or_else(|| ShellError::NoShell { object: object() }),
        }
    }

    /// Where on the host a program of the root lies.
    fn locate(&self, program: &str) -> Option<PathBuf> {
        let file = |path: &str| {
            let located = self.root.locate(path)?;
            match (located.provider, located.file) {
                (Some(provider), Some(Entry::File { .. })) => {
                    Some(provider.path.join(located.path))
                }
                _ => None,
            }
        };
        if !program.contains('/') {
            return PATH.iter().find_map(|directory| file(&format!("{directory}/{program}")));
        }
        // `/bin` and the like are links that the root's layout adds.
        file(program).or_else(|| file(&format!("usr/{}", program.trim_start_matches('/'))))
    }

    /// The first bytes of a program, as far as there are so many; none if it isn't to be seen.
    fn start_of(&self, program: &str) -> Result<Vec<u8>, ShellError> {
        let mut start = Vec::new();
        if let Some(path) = self.locate(program) {
            File::open(&path)
                .and_then(|file| file.take(ELF_START_BYTES).read_to_end(&mut start))
                .map_err(|source| ShellError::Io { path, source })?;
        }
        Ok(start)
    }
}

const ELF: &[u8] = b"\x7fELF";
/// The part of an ELF header that says what it is for.
const ELF_START_BYTES: u64 = 20;

/// What lets programs that were just linked against a sysroot run beside it: their loader where
/// they look for it, and where it finds their libraries.
///
/// This is for musl, whose loaders bear the architecture's name and read a file of their own.
fn loaders(sysroot: &Composition) -> Vec<SkeletonEntry> {
    let listing = sysroot.listing();
    let Some(Found::Directory(libraries)) = listing.find(b"usr/lib") else { return Vec::new() };
    let arch = |name: &[u8]| {
        let name = std::str::from_utf8(name).ok()?;
        name.strip_prefix("ld-musl-")?.strip_suffix(".so.1").map(str::to_owned)
    };
    let entries = |arch: String| {
        let loader = format!("/usr/lib/ld-musl-{arch}.so.1");
        let target = format!("/{SYSROOT}{loader}");
        let content = format!("/{SYSROOT}/usr/lib\n");
        [
            SkeletonEntry::Symlink { path: loader, target },
            SkeletonEntry::File { path: format!("/etc/ld-musl-{arch}.path"), mode: 0o644, content },
        ]
    };
    libraries.iter().filter_map(|(name, _)| arch(name)).flat_map(entries).collect()
}

/// Whether a program that begins with `start` runs here without an emulator.
fn is_native(machine: &Machine, start: &[u8]) -> bool {
    BinfmtHandler::for_arch(machine.arch(), "").is_some_and(|handler| matches(&handler, start))
}

/// Whether the kernel would give a program that begins with `start` to the handler.
fn matches(handler: &BinfmtHandler, start: &[u8]) -> bool {
    let bits = handler.magic.iter().zip(&handler.mask);
    start.len() >= handler.magic.len()
        && bits.zip(start).all(|((magic, mask), byte)| byte & mask == magic & mask)
}

fn environment(term: Option<&str>) -> BTreeMap<String, String> {
    let path: Vec<String> = PATH.iter().map(|directory| format!("/{directory}")).collect();
    [
        ("HOME", HOME),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C.UTF-8"),
        ("PATH", &path.join(":")),
        ("SHELL", "/bin/sh"),
        ("TERM", term.unwrap_or("dumb")),
        ("TMPDIR", "/tmp"),
        ("TZ", "UTC"),
        ("USER", "build"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use srp_store::ingest::{self, Rules};
    use srp_store::{Access, Object, OpenTree, Reference, Registration};

    use super::*;

    const AARCH64: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0";

    fn add(
        store: &Store,
        name: &str,
        file: &str,
        bytes: &[u8],
        needs: &[&ObjectName],
    ) -> ObjectName {
        let scratch = store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        let path = tree.join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(path, bytes).expect("written");
        let listing = Arc::new(
            ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default()).expect("taken"),
        );
        let references =
            needs.iter().map(|it| Reference { kind: ReferenceKind::Run, object: it.id }).collect();
        let object = Object {
            name: name.parse().expect("a name"),
            tree: listing.digest(),
            references,
            permissions: [].into(),
        };
        let mut registration = Registration::default();
        registration.object(store, &object, listing, tree);
        store.commit(registration).expect("committed");
        object.path_name()
    }

    #[test]
    fn a_shell_has_the_closure_and_a_home() {
        let lately = Assurance::within(std::time::Duration::MAX);
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        let libc = add(&store, "libc", "usr/lib/libc.so", b"c", &[]);
        let dash = add(&store, "dash", "usr/bin/sh", b"#!", &[&libc]);
        let shell = Shell::new(&store, &dash, None).expect("composed");
        let machine = Machine::of_arch("x86_64");
        let request = ShellRequest { term: Some("xterm".to_owned()), ..ShellRequest::default() };
        let plan = shell.plan(&request, &machine, &lately).expect("a plan");
        assert_eq!(plan.validate(), Ok(()));
        assert_eq!(plan.command, ["/usr/bin/sh"]);
        assert_eq!(
            (plan.root, plan.stdio, plan.layers.len()),
            (RootMode::Ephemeral, Stdio::Relayed, 2)
        );
        assert_eq!(plan.env["TERM"], "xterm");
        let made: Vec<&str> = plan.skeleton.iter().map(SkeletonEntry::path).collect();
        assert!(made.contains(&HOME) && made.contains(&"/lib"), "{made:?}");

        let asked =
            |program: &str| ShellRequest { command: vec![program.to_owned()], ..request.clone() };
        for there in ["sh", "/bin/sh", "/usr/bin/sh", "/made/later"] {
            assert!(shell.plan(&asked(there), &machine, &lately).is_ok(), "{there}");
        }
        let error = shell.plan(&asked("vi"), &machine, &lately).expect_err("no vi");
        assert_eq!(error.to_string(), format!("{dash} has no program vi"));
        let error =
            Shell::new(&store, &libc, None).expect("composed").plan(&request, &machine, &lately);
        assert!(error.expect_err("no shell").to_string().contains("has no shell (/usr/bin/bash"));
    }

    #[test]
    fn programs_of_a_sysroot_find_their_loader() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        let musl = add(&store, "musl", "usr/lib/ld-musl-aarch64.so.1", b"", &[]);
        let sysroot = store.compose(&[vec![musl.id]]).expect("composed");
        let link = SkeletonEntry::Symlink {
            path: "/usr/lib/ld-musl-aarch64.so.1".to_owned(),
            target: "/srp/sysroot/usr/lib/ld-musl-aarch64.so.1".to_owned(),
        };
        let made = loaders(&sysroot);
        assert_eq!(made[0], link);
        assert_eq!(made[1].path(), "/etc/ld-musl-aarch64.path");
        assert!(loaders(&store.compose(&[]).expect("composed")).is_empty());
    }

    #[test]
    fn a_foreign_program_needs_a_runner() {
        let lately = Assurance::within(std::time::Duration::MAX);
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        let foreign = add(&store, "sh", "usr/bin/sh", AARCH64, &[]);
        let qemu = add(&store, "qemu", "usr/bin/qemu-aarch64", b"", &[]);
        let spec = RunnerSpec {
            key: srp_store::InputKey {
                derivation: srp_store::StaticHash::from_bytes([1; 32]),
                output: srp_store::OutputName::out(),
            },
            program: "/usr/bin/qemu-aarch64".to_owned(),
            cpu: "cortex-a72".to_owned(),
            uname: "6.12.0".to_owned(),
        };
        let known: BTreeMap<_, _> =
            ["aarch64", "riscv64"].map(|arch| (arch.to_owned(), spec.clone())).into();
        let shell = Shell::new(&store, &foreign, None).expect("composed");
        let arm = Machine::of_arch("aarch64");
        let riscv = Machine::of_arch("riscv64");
        assert!(shell.emulated(&[], &arm, &known).expect("readable").is_empty());
        let wanted = shell.emulated(&[], &riscv, &known).expect("readable");
        assert_eq!(wanted.iter().collect::<Vec<_>>(), ["aarch64"]);

        let error = shell.plan(&ShellRequest::default(), &riscv, &lately).expect_err("no runner");
        assert!(matches!(error, ShellError::NoRunner { .. }), "{error}");
        let runners = [("aarch64".to_owned(), (spec, qemu.id))].into();
        let request = ShellRequest { runners, ..ShellRequest::default() };
        let plan = shell.plan(&request, &riscv, &lately).expect("a plan");
        assert_eq!(plan.binfmt.len(), 1);
        assert!(plan.binfmt[0].emulator.ends_with("usr/bin/qemu-aarch64"));
        assert_eq!(plan.env["QEMU_CPU"], "cortex-a72");
    }
}
