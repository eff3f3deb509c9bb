//! Derivations: how an object is made, and the two hashes of that.
//!
//! A derivation is a plain value. Its **static** hash names every input by that input's static
//! hash and is known before anything is built; its **resolved** hash names every input by the
//! object that was chosen for it, so that an input which comes out the same changes nothing above
//! it (early cutoff). Advice (descriptions, places to fetch from, resource needs) is in neither.
//! This file does no I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::{Domain, ObjectId, ResolvedHash, Sha256, StaticHash};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::name::{Name, OutputName, Triple};
use crate::object::Permission;
use crate::revision;

/// How to make one or more objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derivation {
    /// What it and its objects are called.
    pub name: Name,
    /// The version of what is built; informative, but hashed.
    pub version: String,
    /// What is done.
    pub action: Action,
    /// What changes nothing about the result.
    pub advice: Advice,
}

/// What a derivation does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "nearly every derivation is a build")]
pub enum Action {
    /// Runs a program in a sandbox.
    Build(Build),
    /// Fetches a file whose hash is known, and unpacks it: a fixed-output derivation.
    Fetch(Fetch),
    /// Names a composition of objects.
    Stage(Stage),
}

/// A program run in a sandbox.
///
/// Canonical encoding: build, host, target (option), builder, arguments, environment, inputs (list
/// of role, key, output), outputs, declared references (set of kind tag, input index), ignored
/// references, permissions, sandbox paths (option). Where anything is excepted for single files, that
/// follows, and whatever holds the build is tagged `build with exceptions` instead of `build`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Where the builder runs.
    pub build: Triple,
    /// Where the output runs.
    pub host: Triple,
    /// What the output makes programs for; only for compilers.
    pub target: Option<Triple>,
    /// The program's path in the sandbox.
    pub builder: String,
    /// Its arguments, without the program's own name.
    pub arguments: Vec<String>,
    /// Environment beyond what every sandbox sets.
    pub environment: BTreeMap<String, String>,
    /// What it is built from, in composition order.
    pub inputs: Vec<Input>,
    /// What it makes.
    pub outputs: BTreeSet<OutputName>,
    /// Inputs that every output refers to when used, beside those found by scanning.
    pub run: BTreeSet<InputKey>,
    /// Inputs that every output refers to when built against, beside those found by scanning.
    pub develop: BTreeSet<InputKey>,
    /// Needs that nothing provides, and why that is right.
    pub ignore_references: BTreeMap<String, String>,
    /// Modes and owners, by path.
    pub permissions: BTreeMap<String, Permission>,
    /// Why the sandbox's own paths may stay in the outputs, if they may.
    pub allow_sandbox_paths: Option<String>,
    /// What holds for single files only.
    #[serde(default, skip_serializing_if = "FileExceptions::is_empty")]
    pub for_files: FileExceptions,
}

/// Exceptions for single files of the outputs, by path without a leading slash; `*` stands for any
/// characters.
///
/// Canonical encoding: ignored references (map of path to map), sandbox paths (map).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileExceptions {
    /// Needs that nothing provides, and why that is right.
    pub ignore_references: BTreeMap<String, BTreeMap<String, String>>,
    /// Why the sandbox's own paths may stay in these files.
    pub allow_sandbox_paths: BTreeMap<String, String>,
}

impl FileExceptions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ignore_references.is_empty() && self.allow_sandbox_paths.is_empty()
    }
}

/// A file fetched by its hash. Where from is [`Advice::urls`].
///
/// Canonical encoding: SHA-256, format tag, strip, only, exclude, rename.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The fetched file's hash.
    pub sha256: Sha256,
    /// What becomes of the file.
    pub format: Format,
    /// Leading path components to drop.
    pub strip: u64,
    /// Paths to keep; all if empty.
    pub only: Vec<String>,
    /// Paths to drop.
    pub exclude: Vec<String>,
    /// Paths to move, old to new.
    pub rename: BTreeMap<String, String>,
}

/// What becomes of a fetched file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// It is the one file of the object, under the derivation's name.
    File,
    /// A tar archive, compressed or not.
    Tar,
    /// A zip archive.
    Zip,
    /// A Debian package.
    Deb,
}

/// A set of objects composed into one root.
///
/// Canonical encoding: build, host, inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Where programs in `tools` run.
    pub build: Triple,
    /// Where programs in `libs` run.
    pub host: Triple,
    /// The components, in composition order.
    pub inputs: Vec<Input>,
}

/// An input: another derivation's output in a role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Input {
    /// Where it is composed.
    pub role: Role,
    /// Whose output it is.
    #[serde(flatten)]
    pub key: InputKey,
}

/// A derivation's output, by the derivation's static hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InputKey {
    /// The derivation.
    pub derivation: StaticHash,
    /// Which of its outputs.
    pub output: OutputName,
}

/// Where an input is composed in the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// At `/`: what runs during the build.
    Tools,
    /// At the sysroot when cross, at `/` when native: what is built against.
    Libs,
    /// At `/srp/source/<name>`: what is built.
    Sources,
}

/// What changes nothing about the result, and so is in no hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// One line for people.
    pub description: String,
    /// Where a fetched file may be found, best first.
    pub urls: Vec<String>,
    /// The fetched file's length, for progress.
    pub size_bytes: Option<u64>,
    /// The most memory the build is expected to take.
    pub memory_mib: Option<u64>,
    /// What the builder needs of the CPU beyond what every one of its architecture has, as
    /// `/proc/cpuinfo` names it.
    pub cpu_features: Vec<String>,
    /// How many cores it can use; all if nothing is said.
    pub cores: Option<u64>,
    /// How long it may take.
    pub timeout_seconds: Option<u64>,
    /// How long it may say nothing.
    pub silence_seconds: Option<u64>,
}

impl Derivation {
    /// The hash with inputs named by their static hashes.
    pub fn static_hash(&self) -> StaticHash {
        StaticHash::from_bytes(Domain::Static.hash(&self.hashed(&mut |key| key.to_canonical())))
    }

    /// The hash with inputs named by the objects chosen for them: `objects[i]` for `inputs()[i]`.
    ///
    /// # Panics
    /// If there are fewer objects than inputs.
    pub fn resolved_hash(&self, objects: &[ObjectId]) -> ResolvedHash {
        let chosen: BTreeMap<&InputKey, ObjectId> =
            self.inputs().iter().map(|input| &input.key).zip(objects.iter().copied()).collect();
        assert_eq!(self.inputs().len(), objects.len(), "every input has an object");
        ResolvedHash::from_bytes(
            Domain::Resolved.hash(&self.hashed(&mut |key| chosen[key].to_canonical())),
        )
    }

    /// What it is made from, in composition order. Empty for a fetch.
    pub fn inputs(&self) -> &[Input] {
        match &self.action {
            Action::Build(build) => &build.inputs,
            Action::Stage(stage) => &stage.inputs,
            Action::Fetch(_) => &[],
        }
    }

    /// The names of what it makes.
    pub fn outputs(&self) -> BTreeSet<OutputName> {
        match &self.action {
            Action::Build(build) => build.outputs.clone(),
            Action::Fetch(_) | Action::Stage(_) => [OutputName::out()].into(),
        }
    }

    /// The name of an output's object: the derivation's, with `-<output>` unless it is `out`.
    pub fn object_name(&self, output: &OutputName) -> Name {
        if *output == OutputName::out() {
            return self.name.clone();
        }
        format!("{}-{output}", self.name).parse().unwrap_or_else(|_| self.name.clone())
    }

    /// Whether what it makes runs elsewhere than its builder: full triples are compared.
    pub fn is_cross(&self) -> bool {
        match &self.action {
            Action::Build(Build { build, host, .. }) | Action::Stage(Stage { build, host, .. }) => {
                build != host
            }
            Action::Fetch(_) => false,
        }
    }

    /// The hashed part, with inputs as `named` encodes them.
    fn hashed(&self, named: &mut dyn FnMut(&InputKey) -> Vec<u8>) -> Vec<u8> {
        let mut to = Encoder::default();
        self.name.encode(&mut to);
        match &self.action {
            Action::Fetch(fetch) => {
                to.text("fetch");
                to.integer(revision::UNPACKER);
                to.integer(revision::NORMALISER);
                fetch.encode(&mut to);
            }
            Action::Stage(stage) => {
                to.text("stage");
                to.text(&self.version);
                stage.build.encode(&mut to);
                stage.host.encode(&mut to);
                encode_inputs(&stage.inputs, named, &mut to);
            }
            Action::Build(build) => {
                to.text(build.tag());
                to.text(&self.version);
                for revision in [revision::SANDBOX, revision::NORMALISER, revision::SCANNER] {
                    to.integer(revision);
                }
                build.encode_with(named, &mut to);
            }
        }
        to.finish()
    }
}

fn encode_inputs(inputs: &[Input], named: &mut dyn FnMut(&InputKey) -> Vec<u8>, to: &mut Encoder) {
    to.integer(inputs.len() as u64);
    for input in inputs {
        to.text(input.role.tag());
        to.raw(&named(&input.key));
    }
}

fn encode_keys(
    keys: &BTreeSet<InputKey>,
    inputs: &[Input],
    named: &mut dyn FnMut(&InputKey) -> Vec<u8>,
    to: &mut Encoder,
) {
    // In composition order and not in the order of hashes: the same list in both hashes.
    let named: Vec<Vec<u8>> =
        inputs.iter().filter(|input| keys.contains(&input.key)).map(|it| named(&it.key)).collect();
    to.integer(named.len() as u64);
    named.iter().for_each(|bytes| to.raw(bytes));
}

impl Build {
    fn encode_with(&self, named: &mut dyn FnMut(&InputKey) -> Vec<u8>, to: &mut Encoder) {
        self.build.encode(to);
        self.host.encode(to);
        self.target.encode(to);
        to.text(&self.builder);
        self.arguments.encode(to);
        self.environment.encode(to);
        encode_inputs(&self.inputs, named, to);
        self.outputs.encode(to);
        encode_keys(&self.run, &self.inputs, named, to);
        encode_keys(&self.develop, &self.inputs, named, to);
        self.ignore_references.encode(to);
        self.permissions.encode(to);
        self.allow_sandbox_paths.encode(to);
        // Derivations from before there were any keep their hashes.
        if !self.for_files.is_empty() {
            self.for_files.encode(to);
        }
    }

    const TAG: &'static str = "build";
    const TAG_WITH_EXCEPTIONS: &'static str = "build with exceptions";

    fn tag(&self) -> &'static str {
        if self.for_files.is_empty() { Self::TAG } else { Self::TAG_WITH_EXCEPTIONS }
    }
}

impl Role {
    /// The role as definitions and manifests write it.
    pub const fn tag(self) -> &'static str {
        match self {
            Role::Tools => "tools",
            Role::Libs => "libs",
            Role::Sources => "sources",
        }
    }

    /// The role that is written `tag`.
    pub fn from_tag(tag: &str) -> Option<Role> {
        [Role::Tools, Role::Libs, Role::Sources].into_iter().find(|role| role.tag() == tag)
    }
}

impl Format {
    const fn tag(self) -> &'static str {
        match self {
            Format::File => "file",
            Format::Tar => "tar",
            Format::Zip => "zip",
            Format::Deb => "deb",
        }
    }
}

impl Canonical for Derivation {
    fn encode(&self, to: &mut Encoder) {
        self.name.encode(to);
        to.text(&self.version);
        match &self.action {
            Action::Build(build) => {
                to.text(build.tag());
                build.encode_with(&mut |key| key.to_canonical(), to);
            }
            Action::Fetch(fetch) => {
                to.text("fetch");
                fetch.encode(to);
            }
            Action::Stage(stage) => {
                to.text("stage");
                stage.build.encode(to);
                stage.host.encode(to);
                stage.inputs.encode(to);
            }
        }
        self.advice.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Derivation {
            name: Name::decode(from)?,
            version: String::decode(from)?,
            action: match from.text()? {
                Build::TAG => Action::Build(Build::decode(from)?),
                Build::TAG_WITH_EXCEPTIONS => {
                    let build = Build::decode(from)?;
                    let for_files = FileExceptions::decode(from)?;
                    // One derivation has one encoding.
                    if for_files.is_empty() {
                        let tag = Build::TAG_WITH_EXCEPTIONS.to_owned();
                        return Err(DecodeError::UnknownVariant { tag });
                    }
                    Action::Build(Build { for_files, ..build })
                }
                "fetch" => Action::Fetch(Fetch::decode(from)?),
                "stage" => Action::Stage(Stage {
                    build: Triple::decode(from)?,
                    host: Triple::decode(from)?,
                    inputs: Vec::decode(from)?,
                }),
                tag => return Err(DecodeError::UnknownVariant { tag: tag.to_owned() }),
            },
            advice: Advice::decode(from)?,
        })
    }
}

impl Build {
    /// Everything but the exceptions for files, which its tag announces.
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Build {
            build: Triple::decode(from)?,
            host: Triple::decode(from)?,
            target: Option::decode(from)?,
            builder: String::decode(from)?,
            arguments: Vec::decode(from)?,
            environment: BTreeMap::decode(from)?,
            inputs: Vec::decode(from)?,
            outputs: BTreeSet::decode(from)?,
            run: Vec::decode(from)?.into_iter().collect(),
            develop: Vec::decode(from)?.into_iter().collect(),
            ignore_references: BTreeMap::decode(from)?,
            permissions: BTreeMap::decode(from)?,
            allow_sandbox_paths: Option::decode(from)?,
            for_files: FileExceptions::default(),
        })
    }
}

impl Canonical for FileExceptions {
    fn encode(&self, to: &mut Encoder) {
        self.ignore_references.encode(to);
        self.allow_sandbox_paths.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(FileExceptions {
            ignore_references: BTreeMap::decode(from)?,
            allow_sandbox_paths: BTreeMap::decode(from)?,
        })
    }
}

impl Canonical for Fetch {
    fn encode(&self, to: &mut Encoder) {
        self.sha256.encode(to);
        to.text(self.format.tag());
        self.strip.encode(to);
        self.only.encode(to);
        self.exclude.encode(to);
        self.rename.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Fetch {
            sha256: Sha256::decode(from)?,
            format: {
                let tag = from.text()?;
                [Format::File, Format::Tar, Format::Zip, Format::Deb]
                    .into_iter()
                    .find(|format| format.tag() == tag)
                    .ok_or_else(|| DecodeError::UnknownVariant { tag: tag.to_owned() })?
            },
            strip: u64::decode(from)?,
            only: Vec::decode(from)?,
            exclude: Vec::decode(from)?,
            rename: BTreeMap::decode(from)?,
        })
    }
}

impl Canonical for Input {
    fn encode(&self, to: &mut Encoder) {
        to.text(self.role.tag());
        self.key.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let tag = from.text()?;
        let role = Role::from_tag(tag)
            .ok_or_else(|| DecodeError::UnknownVariant { tag: tag.to_owned() })?;
        Ok(Input { role, key: InputKey::decode(from)? })
    }
}

impl Canonical for InputKey {
    fn encode(&self, to: &mut Encoder) {
        self.derivation.encode(to);
        self.output.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(InputKey { derivation: StaticHash::decode(from)?, output: OutputName::decode(from)? })
    }
}

impl Canonical for Advice {
    fn encode(&self, to: &mut Encoder) {
        to.text(&self.description);
        self.urls.encode(to);
        self.cpu_features.encode(to);
        for number in [
            self.size_bytes,
            self.memory_mib,
            self.cores,
            self.timeout_seconds,
            self.silence_seconds,
        ] {
            number.encode(to);
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Advice {
            description: String::decode(from)?,
            urls: Vec::decode(from)?,
            cpu_features: Vec::decode(from)?,
            size_bytes: Option::decode(from)?,
            memory_mib: Option::decode(from)?,
            cores: Option::decode(from)?,
            timeout_seconds: Option::decode(from)?,
            silence_seconds: Option::decode(from)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn source() -> Derivation {
        Derivation {
            name: "zlib.tar.gz".parse().expect("a name"),
            version: String::new(),
            action: Action::Fetch(Fetch {
                sha256: Sha256::from_bytes([1; 32]),
                format: Format::Tar,
                strip: 1,
                only: vec![],
                exclude: vec!["doc".to_owned()],
                rename: BTreeMap::new(),
            }),
            advice: Advice { urls: vec!["https://a.example/zlib".to_owned()], ..Advice::default() },
        }
    }

    fn build() -> Derivation {
        let key = InputKey { derivation: source().static_hash(), output: OutputName::out() };
        Derivation {
            name: "zlib".parse().expect("a name"),
            version: "1.3".to_owned(),
            action: Action::Build(Build {
                build: "x86_64-linux-gnu".parse().expect("a triple"),
                host: "x86_64-linux-musl".parse().expect("a triple"),
                target: None,
                builder: "/usr/bin/bash".to_owned(),
                arguments: vec!["-c".to_owned(), "true".to_owned()],
                environment: [("A".to_owned(), "b".to_owned())].into(),
                inputs: vec![Input { role: Role::Libs, key: key.clone() }],
                outputs: [OutputName::out()].into(),
                run: [key].into(),
                develop: BTreeSet::new(),
                ignore_references: BTreeMap::new(),
                permissions: BTreeMap::new(),
                allow_sandbox_paths: None,
                for_files: FileExceptions::default(),
            }),
            advice: Advice::default(),
        }
    }

    fn object(text: &str) -> ObjectId {
        ObjectId::truncate(*Digest::of_file(text.as_bytes()).as_bytes())
    }

    #[test]
    fn golden_hashes() {
        let hashes = [
            source().static_hash().to_string(),
            build().static_hash().to_string(),
            build().resolved_hash(&[object("zlib")]).to_string(),
        ];
        assert_eq!(
            hashes,
            [
                "a3732475275c2add74e244466b822d3ae398902d12b1d946d86db4aa79fea4d2",
                "f876a6568994a19ebfc9aa5bcb69516656043c188c95de5ecb8d6c19a47ee129",
                "874d6996f875dbd66031a44fbc88eaaa24e268ea89cecfa59485173f64efa556",
            ]
        );
    }

    #[test]
    fn a_derivation_is_decoded_from_its_encoding() {
        let mut excepted = build();
        if let Action::Build(build) = &mut excepted.action {
            build.for_files.ignore_references =
                [("a".to_owned(), [("b".to_owned(), "c".to_owned())].into())].into();
        }
        assert_ne!(excepted.static_hash(), build().static_hash());
        let mut zip = source();
        if let Action::Fetch(fetch) = &mut zip.action {
            fetch.format = Format::Zip;
        }
        for derivation in [source(), zip, build(), excepted] {
            assert_eq!(Derivation::from_canonical(&derivation.to_canonical()), Ok(derivation));
        }
    }

    #[test]
    fn advice_is_in_no_hash_and_a_resolved_hash_sees_objects_only() {
        let mut elsewhere = source();
        elsewhere.advice =
            Advice { description: "moved".to_owned(), cores: Some(1), ..Advice::default() };
        assert_eq!(elsewhere.static_hash(), source().static_hash());

        let mut other_input = build();
        if let Action::Build(build) = &mut other_input.action {
            build.inputs[0].key.derivation = StaticHash::from_bytes([9; 32]);
            build.run = [build.inputs[0].key.clone()].into();
        }
        assert_ne!(other_input.static_hash(), build().static_hash());
        let same = [object("zlib")];
        assert_eq!(other_input.resolved_hash(&same), build().resolved_hash(&same));
        assert_ne!(build().resolved_hash(&[object("other")]), build().resolved_hash(&same));
    }

    #[test]
    fn cross_is_decided_by_full_triples() {
        assert!(build().is_cross());
    }
}
