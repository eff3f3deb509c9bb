//! Endpoint, region and credentials: where Amazon's own programs look for them.
//!
//! Variables first, then a profile of the files below `~/.aws`. Profiles that only say how to get
//! credentials (single sign-on, roles, programs) are deliberately not followed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use ureq::http::Uri;

use crate::fetch::url;

/// The variables that count. `object_store` knows them by the same names.
const VARIABLES: &[&str] = &[
    ACCESS_KEY,
    SECRET_KEY,
    SESSION_TOKEN,
    REGION,
    DEFAULT_REGION,
    ENDPOINT,
    S3_ENDPOINT,
    "AWS_ENDPOINT_URL_STS",
    WEB_IDENTITY,
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    CONTAINER_URI,
    CONTAINER_FULL_URI,
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    SKIP_SIGNATURE,
];

const ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
const REGION: &str = "AWS_REGION";
const DEFAULT_REGION: &str = "AWS_DEFAULT_REGION";
const ENDPOINT: &str = "AWS_ENDPOINT_URL";
const S3_ENDPOINT: &str = "AWS_ENDPOINT_URL_S3";
const WEB_IDENTITY: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const CONTAINER_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const CONTAINER_FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const SKIP_SIGNATURE: &str = "AWS_SKIP_SIGNATURE";

/// What a profile may say, and the variable that says the same.
const OF_PROFILES: &[(&str, &str)] = &[
    ("aws_access_key_id", ACCESS_KEY),
    ("aws_secret_access_key", SECRET_KEY),
    ("aws_session_token", SESSION_TOKEN),
    ("region", REGION),
    ("endpoint_url", ENDPOINT),
];

/// Where buckets are, and as whom they are used: variables, and which files to look into.
#[derive(Clone, Default)]
pub struct AwsSettings {
    values: BTreeMap<&'static str, String>,
    /// The profile that was asked for by name.
    profile: Option<String>,
    /// Whether Amazon's own machines may be asked for their credentials.
    machine: bool,
    config: Option<PathBuf>,
    credentials: Option<PathBuf>,
}

/// What is known when the files are read, too.
pub(super) struct Resolved {
    /// By the names of variables, without the endpoint's.
    pub(super) values: BTreeMap<&'static str, String>,
    /// Without a slash at its end.
    pub(super) endpoint: String,
}

/// Settings that make no sense. None of these ever says a value that may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: Error },
    #[error("there is no profile {name} (AWS_PROFILE) in the files of ~/.aws")]
    NoProfile { name: String },
    #[error("there are no credentials: neither {ACCESS_KEY} nor a profile of ~/.aws has any")]
    NoCredentials,
    #[error("{present} is given, and {missing} isn't")]
    Half { present: &'static str, missing: &'static str },
    #[error("what {name} is set to has characters that nothing of its kind has")]
    Characters { name: &'static str },
    #[error("the endpoint {endpoint:?} (AWS_ENDPOINT_URL) is no http(s)://HOST")]
    Endpoint { endpoint: String },
}

impl AwsSettings {
    /// Takes what variables say; files are read when a bucket is opened.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> AwsSettings {
        let get = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let home = get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let file = |name: &str, below: &str| {
            get(name).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".aws").join(below)))
        };
        AwsSettings {
            values: VARIABLES.iter().filter_map(|name| Some((*name, get(name)?))).collect(),
            machine: get("AWS_EC2_METADATA_DISABLED").is_none_or(|it| it != "true"),
            profile: get("AWS_PROFILE").or_else(|| get("AWS_DEFAULT_PROFILE")),
            config: file("AWS_CONFIG_FILE", "config"),
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        }
    }

    /// Reads the profile, and checks what there is.
    pub(super) fn resolve(&self) -> Result<Resolved, SettingsError> {
        let mut values = self.values.clone();
        let has = |name| self.values.contains_key(name);
        // Halves of two identities don't make one.
        let identified = [ACCESS_KEY, SECRET_KEY, WEB_IDENTITY, SKIP_SIGNATURE].map(has);
        let identified = identified.contains(&true);
        if !identified {
            values.remove(SESSION_TOKEN);
        }
        for (name, value) in self.profile()? {
            let said = match name {
                ACCESS_KEY | SECRET_KEY | SESSION_TOKEN => identified,
                REGION => has(REGION) || has(DEFAULT_REGION),
                name => has(name),
            };
            if !said {
                values.insert(name, value);
            }
        }
        for (present, missing) in [(ACCESS_KEY, SECRET_KEY), (SECRET_KEY, ACCESS_KEY)] {
            if values.contains_key(present) && !values.contains_key(missing) {
                return Err(SettingsError::Half { present, missing });
            }
        }
        let sources = [ACCESS_KEY, WEB_IDENTITY, CONTAINER_URI, CONTAINER_FULL_URI, SKIP_SIGNATURE];
        if !self.machine && !sources.iter().any(|name| values.contains_key(name)) {
            return Err(SettingsError::NoCredentials);
        }
        // They become parts of headers, where anything else would end in a panic.
        for (name, value) in values.iter().filter(|(name, _)| !name.ends_with("_FILE")) {
            if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(SettingsError::Characters { name });
            }
        }
        let region = values.get(REGION).or_else(|| values.get(DEFAULT_REGION));
        let region = region.map_or("us-east-1", String::as_str);
        let endpoint = match values.get(S3_ENDPOINT).or_else(|| values.get(ENDPOINT)) {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let endpoint = parse_endpoint(&endpoint)
            .ok_or_else(|| SettingsError::Endpoint { endpoint: url::redact(&endpoint) })?;
        values.retain(|name, _| !matches!(*name, ENDPOINT | S3_ENDPOINT));
        Ok(Resolved { values, endpoint })
    }

    /// What the profile says, by the names of variables.
    fn profile(&self) -> Result<BTreeMap<&'static str, String>, SettingsError> {
        let name = self.profile.as_deref().unwrap_or("default");
        let long = format!("profile {name}");
        let heading = if name == "default" { name } else { &long };
        let mut found = BTreeMap::new();
        let mut exists = false;
        // The second file wins.
        for (path, heading) in [(&self.config, heading), (&self.credentials, name)] {
            if let Some(path) = path {
                exists |= section(&read(path)?, heading, &mut found);
            }
        }
        match &self.profile {
            Some(name) if !exists => Err(SettingsError::NoProfile { name: name.clone() }),
            _ => Ok(found),
        }
    }
}

/// Takes over what a section says; whether there is such a section.
fn section(text: &str, heading: &str, found: &mut BTreeMap<&'static str, String>) -> bool {
    let (mut exists, mut inside) = (false, false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            inside = name.split(']').next().unwrap_or_default().trim() == heading;
            exists |= inside;
        }
        // What is indented belongs to the value above, and comments have no `=` that counts.
        let Some((key, value)) = line.split_once('=').filter(|_| inside) else { continue };
        let known = OF_PROFILES.iter().find(|(name, _)| *name == key.trim_end());
        if let Some((_, variable)) = known {
            found.insert(variable, value.trim().to_owned());
        }
    }
    exists
}

/// A file's text; nothing if there is no such file.
fn read(path: &Path) -> Result<String, SettingsError> {
    match fs::read_to_string(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        read => read.map_err(|source| SettingsError::Read { path: path.to_owned(), source }),
    }
}

/// An endpoint as its requests begin, without a slash at its end.
fn parse_endpoint(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let sound = matches!(uri.scheme_str(), Some("http" | "https"))
        && !authority.host().is_empty()
        && !authority.as_str().contains('@')
        && uri.query().is_none();
    sound.then(|| uri.to_string().trim_end_matches('/').to_owned())
}

impl std::fmt::Debug for AwsSettings {
    /// Without values: some are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3ConfigKey;

    use super::*;

    /// What is resolved of these variables, with these files below the home directory.
    fn resolve(variables: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Resolved, String> {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join(".aws")).expect("made");
        for (name, text) in files {
            fs::write(home.path().join(".aws").join(name), text).expect("written");
        }
        let settings = AwsSettings::from_variables(|name| match name {
            "HOME" => Some(home.path().to_str().expect("text").to_owned()),
            name => variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned()),
        });
        settings.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn object_store_knows_every_variable() {
        for name in VARIABLES {
            let key = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>();
            assert!(key.is_ok(), "{name}");
        }
    }

    #[test]
    fn without_anything_it_is_amazon() {
        let resolved = resolve(&[], &[]).expect("nothing is wrong with nothing");
        assert_eq!(resolved.endpoint, "https://s3.us-east-1.amazonaws.com");
        assert!(resolved.values.is_empty());
        let resolved = resolve(&[("AWS_DEFAULT_REGION", " eu-north-1 ")], &[]).expect("a region");
        assert_eq!(resolved.endpoint, "https://s3.eu-north-1.amazonaws.com");
    }

    #[test]
    fn a_profile_says_what_variables_dont() {
        const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile work]\nregion=eu-west-2\n\
                              endpoint_url = http://127.0.0.1:9000/\ns3 =\n  region = none\n";
        const CREDENTIALS: &str = "# mine\n[default]\naws_access_key_id = AKD\n\
                                   aws_secret_access_key = sd=/+\n\
                                   [work]\naws_access_key_id=AKW\naws_secret_access_key=sw\n\
                                   aws_session_token=tw\n";
        let files = [("config", CONFIG), ("credentials", CREDENTIALS)];
        let all = |variables: &[(&str, &str)]| {
            let Resolved { values, endpoint } = resolve(variables, &files).expect("sound");
            let values: Vec<_> = values.into_values().collect();
            format!("{} {endpoint}", values.join(" "))
        };
        assert_eq!(all(&[]), "AKD eu-west-1 sd=/+ https://s3.eu-west-1.amazonaws.com");
        let work = ("AWS_PROFILE", "work");
        assert_eq!(all(&[work]), "AKW eu-west-2 sw tw http://127.0.0.1:9000");
        // The token is of the profile's key, and not of this one.
        let key = [work, (ACCESS_KEY, "AKV"), (SECRET_KEY, "sv"), (S3_ENDPOINT, "HTTP://[::1]:1")];
        assert_eq!(all(&key), "AKV eu-west-2 sv http://[::1]:1");
        let missing = resolve(&[("AWS_PROFILE", "play")], &files).err().expect("refused");
        assert!(missing.contains("no profile play"), "{missing}");
    }

    #[test]
    fn what_makes_no_sense_is_told_without_secrets() {
        for (variables, part) in [
            (&[(ACCESS_KEY, "AK")][..], "AWS_SECRET_ACCESS_KEY isn't"),
            (&[(SECRET_KEY, "s3cret")], "AWS_ACCESS_KEY_ID isn't"),
            (&[(ACCESS_KEY, "AK"), (SECRET_KEY, "s3cr\net")], "AWS_SECRET_ACCESS_KEY is set to"),
            (&[(ENDPOINT, "localhost:9000")], "localhost:9000"),
            (&[(ENDPOINT, "http:///x")], "no http"),
            (&[(ENDPOINT, "http://me:s3cret@h.test")], "no http"),
            (&[(REGION, "/?#")], "no http"),
            (&[("AWS_EC2_METADATA_DISABLED", "true")], "no credentials"),
        ] {
            let error = resolve(variables, &[]).err().expect("refused");
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("s3cr"), "{error}");
        }
    }
}
