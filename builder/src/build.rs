//! Running a builder: from a derivation to a sandbox plan, and from what it wrote to objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use nix::sys::signal::Signal;
use srp_store::compose::Composition;
use srp_store::ingest::{self, Rules};
use srp_store::{
    BASE_LAYOUT, Build, Crew, Digest, Listing, Object, ObjectId, OpenTree, OutputName, Reference,
    ReferenceKind, Registration, Role, Route, Scratch, Skeleton, StoreError, TREE_TIME_SECONDS,
};

use crate::event::Event;
use crate::request::FailureCause;
use crate::roots::{Composed, Outputs};
use crate::sandbox::{
    Bind, BinfmtHandler, Limit, Limits, LimitsBy, NotStarted, Outcome, SandboxError, SandboxPlan,
    SkeletonEntry, Status, out_of_memory_kills,
};
use crate::scan::{self, Provider};
use crate::work::{Chosen, Made, Work};

/// Names that no output may contain: they mean something in the sandbox only.
pub const SANDBOX_PATHS: &[&str] = &["/srp/build", "/srp/out", "/srp/sysroot", "/srp/source"];

/// Where a build finds its job server.
const JOBSERVER_PATH: &str = "/srp/jobserver";

/// Where a build begins: the directory that it may fill with what it likes.
pub(crate) const BUILD_PATH: &str = "/srp/build";

/// The outputs of a build, normalised and hashed where they lie.
pub(crate) type Trees = BTreeMap<OutputName, (PathBuf, Arc<Listing>)>;

/// The composed roots of a build.
pub(crate) struct Roots {
    /// At `/`: tools, and in a native build libs above them.
    root: Composition,
    /// At the sysroot, in a cross build.
    sysroot: Option<Composition>,
    tools: BTreeSet<ObjectId>,
    libs: BTreeSet<ObjectId>,
}

impl Roots {
    /// The trees that the roots are made of.
    pub(crate) fn trees(&self) -> impl Iterator<Item = Digest> {
        let composed = [Some(&self.root), self.sysroot.as_ref()].into_iter().flatten();
        composed.flat_map(|root| root.providers().iter().map(|it| it.listing().digest()))
    }
}

impl Work<'_> {
    pub(crate) fn build(
        &self,
        build: &Build,
        free: &dyn Fn(),
    ) -> Result<(Made, Option<Scratch>), FailureCause> {
        let roots = self.roots()?;
        self.assure(&roots)?;
        let scratch = self.store.scratch()?;
        let log = self.store.log_path(&self.resolved);
        let outcome = self.execute(build, &roots, &scratch, &log, &|_| {}, free)?;
        // Had damage been found meanwhile, what was built would be worth nothing.
        self.assure(&roots)?;
        let (trees, findings) = self.examine(build, &scratch)?;
        let mut made = self.register(build, &roots, trees, &findings)?;
        made.route = self.route(&outcome)?;
        Ok((made, Some(scratch)))
    }

    /// How a build was made, but for the time that it took.
    pub(crate) fn route(&self, outcome: &Outcome) -> Result<Route, FailureCause> {
        Ok(Route {
            runner: self.runner_name()?,
            machine: self.machine.arch().to_owned(),
            limits_by: match outcome.isolation.limits_by {
                LimitsBy::Cgroup => "cgroup",
                LimitsBy::Watchdog => "watchdog",
            }
            .to_owned(),
            peak_memory_bytes: outcome.peak_memory_bytes,
            ..Route::default()
        })
    }

    /// Runs the builder in its sandbox, which `vary` may change before. It has written to the
    /// scratch directory's `out` when this returns; a builder that failed is an error. `free` is
    /// called when only the disk is still busy.
    pub(crate) fn execute(
        &self,
        build: &Build,
        roots: &Roots,
        scratch: &Scratch,
        log: &Path,
        vary: &dyn Fn(&mut SandboxPlan),
        free: &dyn Fn(),
    ) -> Result<Outcome, FailureCause> {
        let directory = |name: &str| {
            let path = scratch.path().join(name);
            // A build sees these modes: they mustn't depend on the caller's umask.
            fs::create_dir(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
                .map_err(|source| FailureCause::Io {
                    action: format!("create {}", path.display()),
                    source,
                })?;
            Ok::<_, FailureCause>(path)
        };
        let written = [directory("build")?, directory("tmp")?];
        directory("out")?;
        for output in &build.outputs {
            directory(&format!("out/{output}"))?;
        }
        let jobserver =
            self.broker.register(scratch.path()).map_err(|source| FailureCause::Io {
                action: "create a job server".to_owned(),
                source: std::io::Error::other(source),
            })?;
        let mut plan = self.sandbox_plan(build, roots, scratch.path(), jobserver.path())?;
        vary(&mut plan);

        let mut log = Log::create(log, self)?;
        let killed_before = out_of_memory_kills();
        let outcome = self.launcher.run(&plan, &mut log, self.cancel);
        drop(jobserver);
        log.finish()?;
        let outcome = outcome.map_err(|error| match error {
            SandboxError::Command { program, why: NotStarted::Absent, .. } => {
                FailureCause::NoBuilder { builder: program }
            }
            error => error.into(),
        })?;
        free();
        let killed = out_of_memory_kills().saturating_sub(killed_before);
        check_outcome(&outcome, &plan.limits, killed)?;
        // What the builder left beside its outputs is no longer needed, and may be large.
        for path in written {
            srp_store::remove_tree(&path)?;
        }
        Ok(outcome)
    }

    pub(crate) fn roots(&self) -> Result<Roots, FailureCause> {
        let closure = |role| self.store.closure_ids(&self.role(role), ReferenceKind::ALL);
        let (tools, libs) = (closure(Role::Tools)?, closure(Role::Libs)?);
        let sets = (tools.iter().copied().collect(), libs.iter().copied().collect());
        let (root, sysroot) = if self.derivation.is_cross() {
            let sysroot = (!libs.is_empty()).then(|| self.store.compose(&[libs])).transpose()?;
            (self.store.compose(&[tools])?, sysroot)
        } else {
            (self.store.compose(&[libs, tools])?, None)
        };
        Ok(Roots { root, sysroot, tools: sets.0, libs: sets.1 })
    }

    /// The sandbox of a build, as a value.
    fn sandbox_plan(
        &self,
        build: &Build,
        roots: &Roots,
        scratch: &Path,
        jobserver: &Path,
    ) -> Result<SandboxPlan, FailureCause> {
        let mut command = vec![build.builder.clone()];
        command.extend(build.arguments.iter().cloned());
        let mut plan = SandboxPlan::new(command);
        let layers = |root| self.with_assurance(|assurance| self.store.layers(root, assurance));
        plan.layers = layers(&roots.root)?;
        if let Some(sysroot) = &roots.sysroot {
            plan.sysroot = layers(sysroot)?;
        }
        plan.skeleton = skeleton(&roots.root);
        plan.cwd = BUILD_PATH.to_owned();
        let bind = |source: &Path, target: &str, writable, directory| Bind {
            source: source.to_owned(),
            target: target.to_owned(),
            writable,
            directory,
        };
        plan.binds = vec![
            bind(&scratch.join("build"), BUILD_PATH, true, true),
            // On disk: a linker's temporary files can be larger than memory.
            bind(&scratch.join("tmp"), "/tmp", true, true),
            bind(jobserver, JOBSERVER_PATH, true, false),
        ];
        for output in &build.outputs {
            // A mount each: its top directory can't be removed, renamed or made a link.
            let target = format!("/srp/out/{output}");
            plan.binds.push(bind(&scratch.join("out").join(output.as_str()), &target, true, true));
        }
        for id in self.role(Role::Sources) {
            let object = self.store.info(&id)?.object;
            let target = format!("/srp/source/{}", object.name);
            plan.binds.push(bind(&self.store.tree_path(&object.tree), &target, false, true));
        }
        let cores = self.options.cores as u64;
        let cores = self.derivation.advice.cores.map_or(cores, |most| most.min(cores)).max(1);
        plan.env = environment(build, cores);
        if let Some((runner, object)) = &self.runner {
            let object = self.store.info(object)?.object;
            let program = runner.program_in(&self.store.tree_path(&object.tree));
            let handler = BinfmtHandler::for_arch(build.build.arch(), program);
            plan.binfmt.extend(handler);
            plan.env.extend(runner.environment());
        }
        if plan.binfmt.is_empty() && !self.machine.runs(&build.build) {
            return Err(FailureCause::NoRunner {
                triple: build.build.to_string(),
                arch: build.build.arch().to_owned(),
                machine: self.machine.arch().to_owned(),
            });
        }
        let advice = &self.derivation.advice;
        if plan.binfmt.is_empty() {
            // A program that stumbles over an instruction dies of SIGILL, which explains nothing.
            let features = self.machine.lacks(&advice.cpu_features);
            if !features.is_empty() {
                return Err(FailureCause::Processor { features: features.join(", ") });
            }
        }
        plan.limits = Limits {
            seconds: advice.timeout_seconds.or(self.options.timeout_seconds),
            silence_seconds: advice.silence_seconds.or(self.options.silence_seconds),
            log_bytes: self.options.log_bytes,
            memory_bytes: self.options.memory_bytes,
            processes: Some(PROCESSES),
            file_bytes: Some(FILE_BYTES),
            disk_bytes: Some(self.disk_bytes(scratch)?),
            ..Limits::default()
        };
        Ok(plan)
    }

    /// What one build may take of the disk that its scratch directory lies on.
    fn disk_bytes(&self, scratch: &Path) -> Result<u64, FailureCause> {
        if let Some(bytes) = self.options.disk_bytes {
            return Ok(bytes);
        }
        let found = nix::sys::statvfs::statvfs(scratch).map_err(|errno| FailureCause::Io {
            action: format!("look at the file system of {}", scratch.display()),
            source: errno.into(),
        })?;
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        Ok(free - free / 10)
    }

    fn runner_name(&self) -> Result<String, FailureCause> {
        Ok(match &self.runner {
            Some((_, object)) => self.store.info(object)?.object.path_name().to_string(),
            None => "native".to_owned(),
        })
    }

    /// Normalises and hashes what the builder wrote.
    ///
    /// From the scratch directory, which is srp's own, every step down is by descriptor: what the
    /// builder put in an output's place leads nowhere.
    pub(crate) fn take(&self, build: &Build, scratch: &Scratch) -> Result<Trees, FailureCause> {
        let outputs = OpenTree::open(scratch.path())?.reclaim("out")?;
        Crew::begin(&[], &[&outputs], |crew| {
            let taken = self.take_by(crew, build, &outputs)?;
            Ok(taken.into_iter().map(|(output, taken)| (output, taken.tree)).collect())
        })?
    }

    /// Takes what the builder wrote, and searches it: for paths of the sandbox, and for what it
    /// needs.
    fn examine(&self, build: &Build, scratch: &Scratch) -> Result<(Trees, Findings), FailureCause> {
        let outputs = OpenTree::open(scratch.path())?.reclaim("out")?;
        Crew::begin(&[], &[&outputs], |crew| {
            let taken = self.take_by(crew, build, &outputs)?;
            if build.allow_sandbox_paths.is_none() {
                self.search(crew, build, taken.values().map(|taken| &taken.open))?;
            }
            let (mut trees, mut findings) = (Trees::new(), Findings::new());
            for (output, taken) in taken {
                findings.insert(output.clone(), scan::scan(crew, &taken.open, self.cancel)?);
                trees.insert(output, taken.tree);
            }
            Ok((trees, findings))
        })?
    }

    fn take_by(
        &self,
        crew: &Crew,
        build: &Build,
        outputs: &OpenTree,
    ) -> Result<BTreeMap<OutputName, Taken>, FailureCause> {
        let mut all = BTreeMap::new();
        for output in &build.outputs {
            let name = || output.to_string();
            let open = outputs.reclaim(output.as_str()).map_err(|error| match error {
                StoreError::NotADirectory { what, .. } => {
                    FailureCause::NotADirectory { output: name(), what }
                }
                source => FailureCause::Output { output: name(), source },
            })?;
            // Permissions are declared for the output `out`.
            let permissions = (*output == OutputName::out()).then_some(&build.permissions);
            let rules = Rules { permissions, drop_shared: true, ..self.rules() };
            let refused = |source| FailureCause::Output { output: name(), source };
            let listing = ingest::take_by(crew, &open, rules).map_err(refused)?;
            if listing.root().is_empty() {
                return Err(FailureCause::Empty { output: name() });
            }
            if listing.find(srp_store::compose::RESERVED).is_some() {
                return Err(FailureCause::Reserved { output: name() });
            }
            let tree = (open.path().to_owned(), Arc::new(listing));
            all.insert(output.clone(), Taken { open, tree });
        }
        Ok(all)
    }

    /// Refuses outputs that name places of the sandbox.
    fn search<'a>(
        &self,
        crew: &Crew,
        build: &Build,
        outputs: impl Iterator<Item = &'a OpenTree>,
    ) -> Result<(), FailureCause> {
        let allowed = |file: &str| {
            let mut patterns = build.for_files.allow_sandbox_paths.keys();
            patterns.any(|pattern| scan::matches(pattern, file))
        };
        let mut occurrences = Vec::new();
        for tree in outputs {
            let found = scan::forbidden(crew, tree, SANDBOX_PATHS, &allowed, self.cancel)?;
            occurrences.extend(found.iter().map(ToString::to_string));
        }
        if occurrences.is_empty() {
            return Ok(());
        }
        Err(FailureCause::SandboxPaths { occurrences })
    }

    /// How foreign trees are taken in: so much at most, and until somebody says stop.
    pub(crate) fn rules(&self) -> Rules<'_> {
        let limits = self.options.output_limits;
        Rules { limits, cancel: Some(self.cancel.flag()), ..Rules::default() }
    }

    /// Makes objects of outputs.
    fn register(
        &self,
        build: &Build,
        roots: &Roots,
        mut trees: Trees,
        findings: &Findings,
    ) -> Result<Made, FailureCause> {
        let mut registration = Registration::default();
        let mut outputs = Chosen::new();
        for (output, object) in self.objects(build, roots, &trees, findings)? {
            let (tree, listing) = trees.remove(&output).expect("each output once");
            registration.object(self.store, &object, listing, tree);
            outputs.insert(output, object.id());
        }
        Ok(Made { registration, outputs, route: Route::default() })
    }

    /// The objects that trees of the store are which were outputs once, scanned anew.
    pub(crate) fn objects_again(
        &self,
        build: &Build,
        trees: &Trees,
    ) -> Result<Vec<(OutputName, Object)>, FailureCause> {
        let roots = self.roots()?;
        let mut findings = Findings::new();
        for (output, (tree, _)) in trees {
            let tree = OpenTree::open(tree)?;
            let found = Crew::begin(&[&tree], &[], |crew| scan::scan(crew, &tree, self.cancel))?;
            findings.insert(output.clone(), found?);
        }
        self.objects(build, &roots, trees, &findings)
    }

    /// The objects that outputs are, each after those of the same build that it refers to.
    fn objects(
        &self,
        build: &Build,
        roots: &Roots,
        trees: &Trees,
        findings: &Findings,
    ) -> Result<Vec<(OutputName, Object)>, FailureCause> {
        let references = self.references(build, roots, trees, findings)?;
        let mut objects: Vec<(OutputName, Object)> = Vec::new();
        let mut ids = Chosen::new();
        // An output may refer to another of the same build: those it refers to are hashed first.
        let mut pending: Vec<OutputName> = trees.keys().cloned().collect();
        while !pending.is_empty() {
            let next = pending.iter().position(|output| {
                references[output].own.iter().all(|own| own == output || ids.contains_key(own))
            });
            // Outputs that need each other are one thing: neither can be hashed before the other.
            let output = pending.remove(next.ok_or_else(|| FailureCause::References {
                needs: vec![format!("its outputs {} need each other", list(&pending))],
                hints: Vec::new(),
            })?);
            let found = &references[&output];
            let mut all = found.inputs.clone();
            let own = found.own.iter().filter(|own| **own != output);
            all.extend(own.map(|own| Reference { kind: ReferenceKind::Run, object: ids[own] }));
            let is_out = output == OutputName::out();
            let object = Object {
                name: self.derivation.object_name(&output),
                tree: trees[&output].1.digest(),
                references: all,
                permissions: if is_out { build.permissions.clone() } else { BTreeMap::new() },
            };
            ids.insert(output.clone(), object.id());
            objects.push((output, object));
        }
        Ok(objects)
    }

    /// What each output refers to: declared, and found by scanning.
    fn references(
        &self,
        build: &Build,
        roots: &Roots,
        trees: &Trees,
        findings: &Findings,
    ) -> Result<BTreeMap<OutputName, Found>, FailureCause> {
        let own = Outputs::new(trees);
        let target = roots.sysroot.as_ref().unwrap_or(&roots.root);
        let libs = Composed::new(target, &roots.libs);
        let tools = Composed::new(&roots.root, &roots.tools);
        let mut references = BTreeMap::new();
        for (output, findings) in findings {
            let ignored = scan::Ignored {
                everywhere: &build.ignore_references,
                in_files: &build.for_files.ignore_references,
            };
            let resolved =
                scan::resolve(findings, &own, &libs, &tools, ignored).map_err(|unresolved| {
                    FailureCause::References {
                        needs: unresolved.iter().map(ToString::to_string).collect(),
                        hints: scan::hints(&unresolved),
                    }
                })?;
            let mut found = Found::default();
            for (keys, kind) in
                [(&build.run, ReferenceKind::Run), (&build.develop, ReferenceKind::Develop)]
            {
                found
                    .inputs
                    .extend(keys.iter().map(|key| Reference { kind, object: self.inputs[key] }));
            }
            for (finding, provider) in resolved {
                match provider {
                    Provider::Own(index) => {
                        found.own.insert(own.output(index).clone());
                    }
                    Provider::Lib(index) => {
                        let kind = match finding.kind {
                            scan::Kind::Run => ReferenceKind::Run,
                            scan::Kind::Develop => ReferenceKind::Develop,
                        };
                        found.inputs.insert(Reference { kind, object: libs.object(index) });
                    }
                }
            }
            references.insert(output.clone(), found);
        }
        Ok(references)
    }
}

/// More processes than any build needs, fewer than a machine can't bear.
const PROCESSES: u64 = 4096;

/// Longer than any file that a build has reason to write, shorter than what takes hours to hash.
const FILE_BYTES: u64 = 64 << 30;

/// What each output needs, as its files say.
type Findings = BTreeMap<OutputName, Vec<scan::Finding>>;

/// An output that was taken in.
struct Taken {
    open: OpenTree,
    tree: (PathBuf, Arc<Listing>),
}

/// What an output refers to.
#[derive(Default)]
struct Found {
    inputs: BTreeSet<Reference>,
    own: BTreeSet<OutputName>,
}

fn list(names: &[OutputName]) -> String {
    names.iter().map(OutputName::as_str).collect::<Vec<_>>().join(", ")
}

/// What every derivation finds in its environment, unless it says otherwise.
pub(crate) fn environment_of_every_build() -> impl Iterator<Item = (&'static str, String)> {
    [
        ("HOME", BUILD_PATH),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C.UTF-8"),
        ("PATH", "/usr/bin:/usr/sbin"),
        ("SHELL", "/bin/sh"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
        ("TZ", "UTC"),
        ("USER", "build"),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.to_owned()))
    // That of all inputs: what is made of them at that time is not older than they are.
    .chain([("SOURCE_DATE_EPOCH", TREE_TIME_SECONDS.to_string())])
}

/// Variables that tell of the job server, each to those who can use it and to nobody else: GNU make
/// (which hands it on in `MAKEFLAGS` to whatever it runs), cargo and rustc. In `MAKEFLAGS` itself
/// other makes would find options that they don't know.
pub(crate) const JOBSERVER_VARIABLES: &[&str] = &["GNUMAKEFLAGS", "CARGO_MAKEFLAGS"];

/// The environment of a build, the same on every machine but for the number of cores.
fn environment(build: &Build, cores: u64) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> =
        environment_of_every_build().map(|(name, value)| (name.to_owned(), value)).collect();
    environment.insert("SRP_CORES".to_owned(), cores.to_string());
    for name in JOBSERVER_VARIABLES {
        let flags = format!("-j{cores} --jobserver-auth=fifo:{JOBSERVER_PATH}");
        environment.insert((*name).to_owned(), flags);
    }
    for output in &build.outputs {
        environment.insert(output.to_string(), format!("/srp/out/{output}"));
    }
    environment.extend(build.environment.clone());
    environment
}

/// The base layout as the sandbox's lowest layer, without what the composed root has itself.
/// For the host name that every plan has.
pub(crate) fn skeleton(root: &Composition) -> Vec<SkeletonEntry> {
    BASE_LAYOUT
        .iter()
        .filter_map(|item| match *item {
            // The sandbox mounts these itself.
            Skeleton::Directory("dev" | "proc" | "tmp") => None,
            Skeleton::Directory(path) => {
                let mode = if path == "var/tmp" { 0o1777 } else { 0o755 };
                Some(SkeletonEntry::Dir { path: format!("/{path}"), mode })
            }
            // The sandbox has its own, below.
            Skeleton::File("etc/hosts", _) => None,
            Skeleton::File(path, text) => Some(file(format!("/{path}"), text.to_owned())),
            Skeleton::MergedUsr(name) => {
                let target = format!("usr/{name}");
                root.locate(&target)?;
                Some(SkeletonEntry::Symlink { path: format!("/{name}"), target })
            }
        })
        .chain([
            file(HOSTS.to_owned(), hosts(SandboxPlan::HOSTNAME)),
            file("/etc/nsswitch.conf".to_owned(), NAME_SERVICES.to_owned()),
        ])
        .collect()
}

fn file(path: String, content: String) -> SkeletonEntry {
    SkeletonEntry::File { path, mode: 0o644, content }
}

/// Where the sandbox's own name and that of its loopback interface are looked up.
const HOSTS: &str = "/etc/hosts";

/// Names are looked up in files and nowhere else: a C library without this would ask name servers,
/// and tell "try again" of names that there are none of.
const NAME_SERVICES: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\n\
                             protocols: files\nservices: files\nethers: files\nrpc: files\n";

/// The first name of an address is what the address is called; the first of a line, what its other
/// names stand for.
fn hosts(hostname: &str) -> String {
    format!("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {hostname}\n::1 {hostname}\n")
}

/// Gives a build's host another name; the name that it had.
pub(crate) fn rename_host(plan: &mut SandboxPlan, hostname: &str) -> String {
    for entry in &mut plan.skeleton {
        if let SkeletonEntry::File { path, content, .. } = entry
            && path == HOSTS
        {
            *content = hosts(hostname);
        }
    }
    std::mem::replace(&mut plan.hostname, hostname.to_owned())
}

/// The signals that kill what is wrong, and that nobody sends to say something.
const DEADLY: &[i32] = &[
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGKILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGXFSZ,
];

/// What a signal means, in brackets, where builders have met it.
fn explained(signal: i32) -> String {
    let Ok(name) = Signal::try_from(signal) else { return String::new() };
    let because = match name {
        Signal::SIGXFSZ => {
            format!(": a file grew beyond the {} GiB that a build may write", FILE_BYTES >> 30)
        }
        Signal::SIGSYS => ": a system call that a build may not make".to_owned(),
        _ => String::new(),
    };
    format!(" ({name}{because})")
}

/// `killed` is how many processes the kernel killed for lack of memory while the build ran.
fn check_outcome(outcome: &Outcome, limits: &Limits, killed: u64) -> Result<(), FailureCause> {
    let peak_memory_bytes = outcome.peak_memory_bytes;
    let failed = |how: String| match killed {
        0 => Err(FailureCause::Builder { how }),
        // A compiler that was killed makes its make fail: only the counter tells why.
        _ => Err(FailureCause::OutOfMemory { how, killed, peak_memory_bytes }),
    };
    match &outcome.status {
        Status::Exited(0) => Ok(()),
        Status::Exited(status) => {
            // A shell's way to say which signal killed its command; other programs use such numbers, too.
            let killed = status.checked_sub(128).filter(|it| DEADLY.contains(it));
            let why = killed.map(explained).unwrap_or_default();
            failed(format!("exited with status {status}{why}"))
        }
        Status::Signaled(signal) => {
            failed(format!("was killed by signal {signal}{}", explained(*signal)))
        }
        Status::Cancelled => Err(FailureCause::Builder { how: "was cancelled".to_owned() }),
        Status::LimitExceeded(limit) => Err(FailureCause::Limit {
            limit: match limit {
                Limit::Memory => format!(
                    "took more memory than the {} MiB that a build may (memory_mib of the \
                     configuration, else nine tenths of what srp may use); its processes held \
                     {} MiB at most",
                    limits.memory_bytes.unwrap_or_default() >> 20,
                    peak_memory_bytes >> 20
                ),
                Limit::Processes => {
                    let most = limits.processes.unwrap_or_default();
                    format!("started more processes than the {most} that a build may")
                }
                Limit::Time => {
                    let seconds = limits.seconds.unwrap_or_default();
                    format!("timed out after {seconds} s (timeout_seconds = {seconds})")
                }
                Limit::Silence => {
                    let seconds = limits.silence_seconds.unwrap_or_default();
                    format!("printed nothing for {seconds} s (silence_seconds = {seconds})")
                }
                Limit::Log => format!(
                    "wrote more to its log than the {} MiB that a build may",
                    limits.log_bytes.unwrap_or_default() >> 20
                ),
                Limit::Disk => format!(
                    "wrote more to disk than the {} MiB that it might (disk_mib of the \
                     configuration, else nine tenths of what was free), or left too little room \
                     there for others",
                    limits.disk_bytes.unwrap_or_default() >> 20
                ),
            },
            peak_memory_bytes,
        }),
    }
}

/// A build's log: to its file, and to whoever watches.
struct Log<'a, 'w> {
    file: File,
    path: PathBuf,
    work: &'a Work<'w>,
    error: Option<std::io::Error>,
}

impl<'a, 'w> Log<'a, 'w> {
    fn create(path: &Path, work: &'a Work<'w>) -> Result<Log<'a, 'w>, FailureCause> {
        let file = File::create(path).map_err(|source| FailureCause::Io {
            action: format!("create {}", path.display()),
            source,
        })?;
        Ok(Log { file, path: path.to_owned(), work, error: None })
    }

    fn finish(self) -> Result<(), FailureCause> {
        match self.error {
            None => Ok(()),
            Some(source) => {
                Err(FailureCause::Io { action: format!("write {}", self.path.display()), source })
            }
        }
    }
}

impl Write for Log<'_, '_> {
    /// Never fails: a full disk must not look like the builder's own error. It is reported when
    /// the build has ended.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.work.observer.event(Event::Log { task: self.work.task(), bytes });
        if self.error.is_none() {
            self.error = self.file.write_all(bytes).err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
