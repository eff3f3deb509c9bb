//! Names: what objects, outputs and platforms are called. Pure text rules, no I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::encode::{Canonical, DecodeError, Decoder, Encoder};

/// A name that breaks the rule for its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct NameError {
    text: String,
    kind: &'static str,
    rule: &'static str,
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $parse:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let parse: fn(&str) -> Option<String> = $parse;
                parse(text).map(Self).ok_or_else(|| NameError {
                    text: text.to_owned(),
                    kind: $kind,
                    rule: $rule,
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl Canonical for $name {
            fn encode(&self, to: &mut Encoder) {
                to.text(&self.0);
            }

            fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                from.text()?
                    .parse()
                    .map_err(|error: NameError| DecodeError::Invalid { reason: error.to_string() })
            }
        }
    };
}

text_newtype!(
    /// The name of a derivation and of its objects: a part of a store path.
    Name,
    "name",
    "1 to 180 of the characters A-Z a-z 0-9 + - . _ and no dot first",
    |text| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
        (matches!(text.len(), 1..=180) && !text.starts_with('.') && text.bytes().all(allowed))
            .then(|| text.to_owned())
    }
);

text_newtype!(
    /// What a GC root is called, here or in a binary cache: a directory's name.
    RootName,
    "root name",
    "1 to 200 of the characters A-Z a-z 0-9 + - . _ and no dot first",
    |text| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
        (matches!(text.len(), 1..=200) && !text.starts_with('.') && text.bytes().all(allowed))
            .then(|| text.to_owned())
    }
);

text_newtype!(
    /// The name of one of a derivation's outputs: `out`, `dev`, `debug` …
    OutputName,
    "output name",
    "1 to 32 of the characters a-z 0-9 _, a letter first",
    |text| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        (matches!(text.len(), 1..=32)
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(allowed))
        .then(|| text.to_owned())
    }
);

text_newtype!(
    /// A platform: `<arch>-<vendor>-<system>-<abi>`. A triple written without its vendor
    /// (`x86_64-linux-gnu`) is given the vendor `unknown`, so one platform has one spelling.
    Triple,
    "triple",
    "<arch>-<vendor>-<system>-<abi> or <arch>-<system>-<abi>, in lower case",
    |text| {
        let parts: Vec<&str> = text.split('-').collect();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.".contains(&byte);
        if !parts.iter().all(|part| !part.is_empty() && part.bytes().all(allowed)) {
            return None;
        }
        match parts.as_slice() {
            [arch, system, abi] => Some(format!("{arch}-unknown-{system}-{abi}")),
            [_, _, _, _] => Some(text.to_owned()),
            _ => None,
        }
    }
);

impl OutputName {
    /// The output that is meant where none is named.
    pub fn out() -> OutputName {
        OutputName("out".to_owned())
    }
}

impl Triple {
    /// The first part: `aarch64`.
    pub fn arch(&self) -> &str {
        self.0.split('-').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_or_hide_are_refused() {
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "a\0", "ä", &"x".repeat(181)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "libstdc++-14.2.0".parse::<Name>().map(|name| name.to_string()).as_deref(),
            Ok("libstdc++-14.2.0")
        );
        for bad in ["", "Out", "1", "out put"] {
            assert!(bad.parse::<OutputName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_platform_has_one_spelling() {
        let short: Triple = "x86_64-linux-gnu".parse().expect("a triple");
        assert_eq!(short.as_str(), "x86_64-unknown-linux-gnu");
        assert_eq!("x86_64-unknown-linux-gnu".parse(), Ok(short.clone()));
        assert_ne!("x86_64-linux-musl".parse(), Ok(short.clone()));
        assert_eq!(short.arch(), "x86_64");
        for bad in ["", "x86_64", "x86_64-linux", "a-b-c-d-e", "X86-linux-gnu", "a--b"] {
            assert!(bad.parse::<Triple>().is_err(), "{bad:?}");
        }
    }
}
