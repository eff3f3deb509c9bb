//! `srp sbom`: a bill of materials, in the formats that others read.
//!
//! SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>) and CycloneDX 1.6
//! (<https://cyclonedx.org/docs/1.6/json/>), both as JSON. A document is a function of the derivation
//! that it describes: no time, no machine, no random number is in it.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use srp_store::{Action, Derivation, Format, Role, StaticHash};

use crate::context::Context;
use crate::error::CommandResult;
use crate::provenance::{Kind, Provenance};
use crate::terminal;

/// Print a bill of materials: all that something is made from, for other tools to read
///
/// It lists what is built, the sources, and the seed, with versions and SHA-256, and what was made
/// from what. It is the same wherever and whenever it is made; what SPDX calls the time of its creation
/// is the first second of 1970. Licences are not known.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  srp sbom stage2.x86_64-musl > stage2.spdx.json\n  srp sbom stage2.x86_64-musl --format cyclonedx > stage2.cdx.json"
)]
pub(crate) struct Arguments {
    /// The attribute; it need not be realised
    #[arg(value_name = "ATTR")]
    attr: String,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Written::Spdx)]
    format: Written,
}

/// A format of bills of materials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Written {
    /// SPDX 2.3
    Spdx,
    /// CycloneDX 1.6
    Cyclonedx,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store_if_any()?;
    let provenance = Provenance::of(context, store.as_ref(), &arguments.attr)?;
    terminal::answer_json(&match arguments.format {
        Written::Spdx => spdx(&provenance, &arguments.attr),
        Written::Cyclonedx => cyclonedx(&provenance, &arguments.attr),
    })
}

fn spdx(provenance: &Provenance, attr: &str) -> Value {
    let goal = provenance.goal.derivation;
    let mut packages = Vec::new();
    // A set: several outputs of one derivation are one package.
    let mut relationships =
        BTreeSet::from([("SPDXRef-DOCUMENT".to_owned(), "DESCRIBES", spdx_id(&goal))]);
    for (hash, derivation, kind) in materials(provenance) {
        let mut package = json!({
            "SPDXID": spdx_id(&hash),
            "name": derivation.name,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "comment": kind.as_str(),
        });
        if !derivation.version.is_empty() {
            package["versionInfo"] = json!(derivation.version);
        }
        if let Action::Fetch(fetch) = &derivation.action {
            package["checksums"] =
                json!([{ "algorithm": "SHA256", "checksumValue": fetch.sha256.to_string() }]);
            package["externalRefs"] = json!([{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package_url(derivation, fetch),
            }]);
            if let Some(url) = public_url(derivation) {
                package["downloadLocation"] = json!(url);
            }
        }
        packages.push(package);
        for input in derivation.inputs() {
            let (this, other) = (spdx_id(&hash), spdx_id(&input.key.derivation));
            relationships.insert(match (kind, input.role) {
                (Kind::Stage, _) => (this, "CONTAINS", other),
                (_, Role::Sources) => (this, "GENERATED_FROM", other),
                (_, Role::Tools) => (other, "BUILD_TOOL_OF", this),
                (_, Role::Libs) => (other, "BUILD_DEPENDENCY_OF", this),
            });
        }
    }
    let relationships = relationships.into_iter().map(|(from, what, to)| {
        json!({ "spdxElementId": from, "relationshipType": what, "relatedSpdxElement": to })
    });
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": attr,
        "documentNamespace": format!("urn:srp:derivation:{goal}"),
        "creationInfo": { "created": "1970-01-01T00:00:00Z", "creators": [creator()] },
        "packages": packages,
        "relationships": relationships.collect::<Vec<_>>(),
    })
}

fn cyclonedx(provenance: &Provenance, attr: &str) -> Value {
    let goal = provenance.goal.derivation;
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (hash, derivation, kind) in materials(provenance) {
        let mut component = json!({
            "type": if kind == Kind::Source { "file" } else { "application" },
            "bom-ref": hash,
            "name": derivation.name,
            "properties": [{ "name": "srp:kind", "value": kind.as_str() }],
        });
        if !derivation.version.is_empty() {
            component["version"] = json!(derivation.version);
        }
        if let Action::Fetch(fetch) = &derivation.action {
            component["hashes"] =
                json!([{ "alg": "SHA-256", "content": fetch.sha256.to_string() }]);
            component["purl"] = json!(package_url(derivation, fetch));
            if let Some(url) = public_url(derivation) {
                component["externalReferences"] = json!([{ "type": "distribution", "url": url }]);
            }
        }
        if hash != goal {
            components.push(component);
        }
        let inputs: BTreeSet<StaticHash> =
            derivation.inputs().iter().map(|input| input.key.derivation).collect();
        dependencies.push(json!({ "ref": hash, "dependsOn": inputs }));
    }
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": { "type": "application", "bom-ref": goal, "name": attr },
            "tools": { "components": [
                { "type": "application", "name": "srp", "version": env!("CARGO_PKG_VERSION") },
            ] },
        },
        "components": components,
        "dependencies": dependencies,
    })
}

/// Everything that is listed, by name.
fn materials(provenance: &Provenance) -> Vec<(StaticHash, &Derivation, Kind)> {
    let kinds = [Kind::Stage, Kind::Build, Kind::Source, Kind::Seed];
    let of_kind = |kind| {
        let found = provenance.of_kind(kind).into_iter();
        found.map(move |(hash, derivation)| (hash, derivation, kind))
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

fn spdx_id(hash: &StaticHash) -> String {
    format!("SPDXRef-{hash}")
}

fn creator() -> String {
    concat!("Tool: srp-", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Where everybody can fetch it, if the definitions know such a place.
fn public_url(derivation: &Derivation) -> Option<&String> {
    let is_public = |url: &&String| {
        let scheme = url.split("://").next().unwrap_or_default().to_ascii_lowercase();
        matches!(scheme.as_str(), "http" | "https" | "git+http" | "git+https")
    };
    derivation.advice.urls.iter().find(is_public)
}

/// As in <https://github.com/package-url/purl-spec>.
fn package_url(derivation: &Derivation, fetch: &srp_store::Fetch) -> String {
    let kind = match fetch.format {
        Format::Deb => "deb/debian",
        Format::File | Format::Tar => "generic",
    };
    let version: String = derivation.version.bytes().map(quoted).collect();
    let at = if version.is_empty() { "" } else { "@" };
    let name = derivation.name.as_str().to_ascii_lowercase();
    format!("pkg:{kind}/{name}{at}{version}?checksum=sha256:{}", fetch.sha256)
}

fn quoted(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}
