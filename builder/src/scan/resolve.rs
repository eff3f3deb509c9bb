//! Says which output or input provides what was found to be needed.
//!
//! Only own outputs and the closure of `libs` may. The closure of `tools` is looked at only to
//! explain: a program that came to link a tool's library did so by accident. This isn't a loader:
//! `LD_LIBRARY_PATH`, `ld.so.cache` and the `DT_RPATH` of whoever loads a library play no part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::machine::{self, ElfIdent, IDENT_BYTES};
use super::root::{Located, Root, View};
use super::{Finding, Need, directory_of, walk};

/// Who provides something that is needed: the numbers are those of the [`Root`] that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    /// One of the build's own outputs.
    Own(usize),
    /// An object in the closure of `libs`.
    Lib(usize),
}

/// A need that nothing is allowed to satisfy. Its `Display` is the message for the user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unresolved {
    /// The file's path in its tree, without a leading slash.
    pub file: String,
    /// What it needs.
    pub need: Need,
    /// Why it can't have it.
    pub cause: Cause,
}

/// Why a need is not satisfied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Neither own outputs nor any input has it.
    Nowhere,
    /// Only the closure of `tools` has it.
    OnlyInTools {
        /// The name of the object that has it.
        object: String,
    },
    /// It is there, but for another machine, or isn't a program or library at all.
    Unsuitable {
        /// Its path in the root.
        found: String,
        /// What it was built for; `None` when it isn't ELF.
        elf: Option<ElfIdent>,
    },
}

impl fmt::Display for Unresolved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unresolved { file, need, cause } = self;
        match cause {
            Cause::Nowhere => {
                write!(formatter, "{file} needs {need}, which nothing in its closure provides")
            }
            Cause::OnlyInTools { object } => {
                let verb = match need {
                    Need::Library { .. } => "links",
                    Need::PkgConfig { .. } => "requires",
                    Need::Interpreter { .. } | Need::Script { .. } | Need::Program { .. } => "runs",
                };
                write!(
                    formatter,
                    "{file} {verb} the build tools' {need} (from {object}); declare it in libs"
                )
            }
            Cause::Unsuitable { found, elf } => {
                let wanted = match need {
                    Need::Library { elf, .. } | Need::Interpreter { elf, .. } => elf.to_string(),
                    Need::Script { .. } | Need::Program { .. } => "an executable".to_owned(),
                    Need::PkgConfig { .. } => "a file".to_owned(),
                };
                write!(formatter, "{file} needs {need} for {wanted}, but {found} is ")?;
                match elf {
                    Some(elf) => write!(formatter, "for {elf}"),
                    None => formatter.write_str("none"),
                }
            }
        }
    }
}

impl std::error::Error for Unresolved {}

/// What can be done about needs, where that isn't plain: scripts that configure other packages
/// (`curl-config`) ask for a shell in stages that have none.
pub(crate) fn hints(unresolved: &[Unresolved]) -> Vec<String> {
    let script = unresolved.iter().find(|it| {
        let configures = it.file.rsplit('/').next().is_some_and(|name| name.ends_with("-config"));
        configures && matches!(it.need, Need::Script { .. } | Need::Program { .. })
    });
    let Some(Unresolved { file, need, .. }) = script else { return Vec::new() };
    vec![format!(
        "{file} is run by builds of other packages only: remove it (pkg-config's files say the same), \
         install it into an output of its own whose libs have {need}, or ignore what it needs: \
         ignore_references = {{{file:?}: {{\"{need}\": \"run in builds\"}}}}"
    )]
}

/// Resolves every finding to who provides it, own outputs before `libs`. One finding may have
/// several providers: whoever has the file, and whoever has the symlinks that lead to it.
///
/// A finding whose need matches a pattern of `ignore` is left out whether or not something would
/// provide it. All that can't be resolved is reported at once, sorted.
pub fn resolve(
    findings: &[Finding],
    own: &dyn Root,
    libs: &dyn Root,
    tools: &dyn Root,
    ignore: Ignored<'_>,
) -> Result<Vec<(Finding, Provider)>, Vec<Unresolved>> {
    let roots = [own, libs, tools];
    let mut lookup = Lookup::new(findings);
    let mut resolved = Vec::new();
    let mut unresolved = Vec::new();
    for finding in findings {
        if ignore.has(finding) {
            continue;
        }
        let cause = match lookup.find(View::new(&roots[..2]), finding) {
            Ok(located) => {
                resolved.extend(located.providers.iter().map(|&(layer, provider)| {
                    let provider = match layer {
                        0 => Provider::Own(provider),
                        _ => Provider::Lib(provider),
                    };
                    (finding.clone(), provider)
                }));
                continue;
            }
            Err(cause) => {
                let with_tools = lookup.find(View::new(&roots), finding).ok();
                let providers = with_tools.map(|located| located.providers).unwrap_or_default();
                match providers.into_iter().find(|&(layer, _)| layer == 2) {
                    Some((_, tool)) => Cause::OnlyInTools { object: tools.name(tool) },
                    None => cause,
                }
            }
        };
        let (file, need) = (finding.file.clone(), finding.need.clone());
        unresolved.push(Unresolved { file, need, cause });
    }
    if unresolved.is_empty() {
        resolved.sort_unstable();
        resolved.dedup();
        Ok(resolved)
    } else {
        unresolved.sort_unstable();
        unresolved.dedup();
        Err(unresolved)
    }
}

/// Needs that are to be left alone; in every pattern `*` stands for any characters.
#[derive(Clone, Copy, Debug)]
pub struct Ignored<'a> {
    /// Needed name → reason: whichever file needs it.
    pub everywhere: &'a BTreeMap<String, String>,
    /// File → needed name → reason.
    pub in_files: &'a BTreeMap<String, BTreeMap<String, String>>,
}

impl Ignored<'_> {
    fn has(&self, finding: &Finding) -> bool {
        let named = |names: &BTreeMap<String, String>| {
            names.keys().any(|pattern| matches(pattern, finding.need.name()))
        };
        let mut files = self.in_files.iter();
        named(self.everywhere)
            || files.any(|(pattern, names)| matches(pattern, &finding.file) && named(names))
    }
}

/// Which loader will read a file; they differ in where they look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Libc {
    Musl,
    Glibc,
}

impl Libc {
    fn of(need: &Need) -> Option<Libc> {
        match need {
            Need::Interpreter { path, .. } if path.contains("/ld-musl-") => Some(Libc::Musl),
            Need::Interpreter { path, .. } if path.contains("/ld-linux") => Some(Libc::Glibc),
            Need::Interpreter { path, .. } if path.contains("/ld64.so") => Some(Libc::Glibc),
            Need::Library { soname, .. } => match soname.as_str() {
                "libc.so" => Some(Libc::Musl),
                "libc.so.6" => Some(Libc::Glibc),
                name if name.starts_with("libc.musl-") => Some(Libc::Musl),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Looks needs up, remembering what it read of the files that it came across.
struct Lookup<'a> {
    libc: HashMap<&'a str, Libc>,
    /// Every directory that a file of the tree searches.
    searched: BTreeSet<&'a str>,
    idents: HashMap<PathBuf, Option<ElfIdent>>,
}

impl<'a> Lookup<'a> {
    fn new(findings: &'a [Finding]) -> Lookup<'a> {
        let libc = findings
            .iter()
            .filter_map(|finding| Some((finding.file.as_str(), Libc::of(&finding.need)?)))
            .collect();
        let searched = findings
            .iter()
            .filter_map(|finding| match &finding.need {
                Need::Library { search, .. } => Some(search),
                _ => None,
            })
            .flatten()
            .map(String::as_str)
            .filter(|directory| directory.starts_with('/'))
            .collect();
        Lookup { libc, searched, idents: HashMap::new() }
    }

    fn find(&mut self, view: View<'_>, finding: &Finding) -> Result<Located, Cause> {
        match &finding.need {
            Need::Library { soname, elf, search } => {
                let libc = self.libc.get(finding.file.as_str()).copied();
                self.library(view, soname, *elf, search, libc)
            }
            Need::Interpreter { path, elf } => self.first_elf(view, [path.clone()], *elf),
            Need::Script { interpreter } => first_executable(view, [interpreter.clone()]),
            Need::Program { name } => {
                // The PATH of a root that srp composes; `/bin` and `/sbin` are links to these.
                let path = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
                first_executable(view, path.map(|directory| format!("{directory}/{name}")))
            }
            Need::PkgConfig { module, .. } => pkg_config_paths(&finding.file, module)
                .find_map(|path| view.locate(&path))
                .ok_or(Cause::Nowhere),
        }
    }

    fn library(
        &mut self,
        view: View<'_>,
        soname: &str,
        elf: ElfIdent,
        search: &[String],
        libc: Option<Libc>,
    ) -> Result<Located, Cause> {
        if soname.contains('/') {
            // Relative ones are looked up from wherever the program happens to be started.
            let absolute = soname.starts_with('/').then(|| soname.to_owned());
            return self.first_elf(view, absolute, elf);
        }
        let mut directories = Vec::new();
        for entry in search.iter().filter(|entry| entry.starts_with('/')) {
            if entry.contains("$LIB") || entry.contains("${LIB}") {
                directories.extend(
                    elf.library_directories()
                        .map(|lib| entry.replace("${LIB}", &lib).replace("$LIB", &lib)),
                );
            } else {
                directories.push(entry.clone());
            }
        }
        if libc != Some(Libc::Glibc) {
            directories.extend(musl_directories(view, elf));
        }
        if libc != Some(Libc::Musl) {
            for prefix in ["/usr", "/usr/local"] {
                directories.extend(elf.library_directories().map(|lib| format!("{prefix}/{lib}")));
            }
        }
        let in_directories = |name: &str| -> Vec<String> {
            directories.iter().map(|directory| format!("{directory}/{name}")).collect()
        };
        let found = self.first_elf(view, in_directories(soname), elf);
        if found.is_err() && libc == Some(Libc::Musl) && is_part_of_musl(soname) {
            return self.first_elf(view, in_directories("libc.so"), elf);
        }
        found.or_else(|cause| {
            // A private library may need another that its program, which knows where they are,
            // has loaded before it. That much is trusted of files that belong together.
            let private = self.searched.iter().map(|directory| format!("{directory}/{soname}"));
            let private: Vec<String> = private.collect();
            let located = self.first_elf(view, private, elf).ok();
            let of_own = |located: &Located| located.providers.iter().all(|&(layer, _)| layer == 0);
            located.filter(of_own).ok_or(cause)
        })
    }

    /// The first of `paths` that is a file for `elf`. Loaders pass over those that are not.
    fn first_elf(
        &mut self,
        view: View<'_>,
        paths: impl IntoIterator<Item = String>,
        elf: ElfIdent,
    ) -> Result<Located, Cause> {
        let mut cause = Cause::Nowhere;
        for located in paths.into_iter().filter_map(|path| view.locate(&path)) {
            let found = self.ident(&located.path);
            if found == Some(elf) {
                return Ok(located);
            }
            // A file for another machine says more than a linker script of that name.
            if !matches!(cause, Cause::Unsuitable { elf: Some(_), .. }) {
                cause = Cause::Unsuitable { found: located.name, elf: found };
            }
        }
        Err(cause)
    }

    fn ident(&mut self, path: &Path) -> Option<ElfIdent> {
        if let Some(known) = self.idents.get(path) {
            return *known;
        }
        let ident = read_ident(path);
        self.idents.insert(path.to_owned(), ident);
        ident
    }
}

fn read_ident(path: &Path) -> Option<ElfIdent> {
    let (mut file, _) = walk::open(path).ok()??;
    let mut head = [0; IDENT_BYTES];
    file.read_exact(&mut head).ok()?;
    ElfIdent::parse(&head)
}

fn first_executable(
    view: View<'_>,
    paths: impl IntoIterator<Item = String>,
) -> Result<Located, Cause> {
    let mut cause = Cause::Nowhere;
    for located in paths.into_iter().filter_map(|path| view.locate(&path)) {
        if located.executable {
            return Ok(located);
        }
        if cause == Cause::Nowhere {
            cause = Cause::Unsuitable { found: located.name, elf: None };
        }
    }
    Err(cause)
}

/// Where musl's loader looks: what `/etc/ld-musl-ARCH.path` says, else its own three.
fn musl_directories(view: View<'_>, elf: ElfIdent) -> Vec<String> {
    let listed = elf.musl_names().iter().find_map(|name| {
        let located = view.locate(&format!("/etc/ld-musl-{name}.path"))?;
        let (file, _) = walk::open(&located.path).ok()??;
        let mut text = String::new();
        file.take(64 << 10).read_to_string(&mut text).ok()?;
        Some(text)
    });
    let text = listed.as_deref().unwrap_or("/lib:/usr/local/lib:/usr/lib");
    text.split([':', '\n']).filter(|entry| entry.starts_with('/')).map(str::to_owned).collect()
}

/// musl's loader takes itself for these, with whatever suffix.
fn is_part_of_musl(soname: &str) -> bool {
    let stem = soname.strip_prefix("lib").and_then(|rest| rest.split_once('.'));
    stem.is_some_and(|(stem, _)| ["c", "pthread", "rt", "m", "dl", "util", "xnet"].contains(&stem))
}

/// The files that may be `module`, those beside the file that requires it first: pkg-config's
/// search path is the user's, but what one build installed side by side belongs together.
fn pkg_config_paths(file: &str, module: &str) -> impl Iterator<Item = String> {
    let beside = format!("/{}", directory_of(file));
    let multiarch = machine::multiarch_triples().map(|triple| format!("/usr/lib/{triple}"));
    let fixed = ["lib", "share", "lib64", "lib32", "libx32", "local/lib", "local/share"];
    let directories = fixed.into_iter().map(|directory| format!("/usr/{directory}"));
    let file_name = format!("{module}.pc");
    std::iter::once(beside)
        .chain(directories.chain(multiarch).map(|directory| format!("{directory}/pkgconfig")))
        .map(move |directory| format!("{directory}/{file_name}"))
}

/// Whether `pattern`, in which `*` stands for any characters, matches all of `text`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.len() >= end.len() && text.ends_with(end)
}
