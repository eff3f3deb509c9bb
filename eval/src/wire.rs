//! What an evaluating process tells the process that started it: frames on a pipe, as plain data.
//!
//! The process that reads them doesn't trust them: Starlark ran definitions that anybody may have
//! written. The total is bounded, names and paths are parsed again, and a graph has to be closed
//! and to have the hashes that it says.
//!
//! The stream begins with [`MAGIC`]. A frame is its tag (one byte), the length of its body (8
//! bytes, little endian) and the body. The first frame whose tag is [`DONE`] is the last.

use std::collections::BTreeMap;
use std::io::{self, Write};

use srp_store::encode::{DecodeError, Decoder, Encoder};
use srp_store::{Canonical, Derivation, InputKey, StaticHash};

use crate::definitions::{DefinitionPath, Seen};
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Listed, Runner};

/// The stream's first bytes. Both ends are the same program unless something is amiss.
pub(crate) const MAGIC: &[u8] =
    concat!("srp evaluation v1 ", env!("CARGO_PKG_VERSION"), "\n").as_bytes();
/// The most that an evaluation may come to.
pub(crate) const RESULT_BYTES: usize = 64 << 20;
/// The most that all frames may hold together: the result, what was printed, and positions.
pub(crate) const STREAM_BYTES: usize = RESULT_BYTES + (8 << 20);

/// A body that is UTF-8: what is evaluated from here on.
pub(crate) const AT: u8 = b'a';
/// A body that is UTF-8: the statement that is run next, as `//lib/make.star:12:5`.
pub(crate) const POSITION: u8 = b'l';
/// A body that is UTF-8: a text that a definition prints.
pub(crate) const PRINTED: u8 = b'p';
/// The result.
pub(crate) const DONE: u8 = b'd';

/// Bytes that are no stream of an evaluating process.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream begins with something else.
    #[error("it is not the same version of srp")]
    Version,
    /// More bytes than any evaluation sends.
    #[error("it sent more than {} MiB", STREAM_BYTES >> 20)]
    TooLong,
    /// A frame is none of those that there are.
    #[error("it sent an unknown frame ({tag})")]
    Tag {
        /// The frame's tag.
        tag: u8,
    },
    /// A text isn't UTF-8.
    #[error("it sent text that is not UTF-8")]
    NotUtf8,
    /// A result isn't one.
    #[error("its result is malformed")]
    Malformed {
        /// How.
        #[from]
        source: DecodeError,
    },
    /// An error isn't one.
    #[error("its error is malformed")]
    MalformedError {
        /// How.
        source: serde_json::Error,
    },
    /// A derivation isn't the one that its hash is of.
    #[error("its derivation {hash} has another hash")]
    Hash {
        /// The hash that was named.
        hash: StaticHash,
    },
    /// Something is made from a derivation that isn't there.
    #[error("its graph lacks an output of the derivation {hash}")]
    Incomplete {
        /// The derivation's hash.
        hash: StaticHash,
    },
    /// The attributes aren't those that were asked for.
    #[error("its answer is to another question")]
    Goals,
    /// A definition file's path isn't one.
    #[error("its file {path:?} is no definition's path")]
    Path {
        /// The text.
        path: String,
    },
}

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// Collects what comes from a pipe and takes frames off it.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    received: Vec<u8>,
    /// Where the first frame begins that wasn't taken yet.
    position: usize,
    total_bytes: usize,
    begun: bool,
}

impl Frames {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.total_bytes = self.total_bytes.saturating_add(bytes.len());
        if self.total_bytes > STREAM_BYTES {
            return Err(WireError::TooLong);
        }
        self.received.drain(..std::mem::take(&mut self.position));
        self.received.extend_from_slice(bytes);
        Ok(())
    }

    /// The next frame, if the whole of it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, WireError> {
        let mut decoder = Decoder::new(&self.received[self.position..]);
        if !self.begun {
            let begin = &decoder.rest()[..decoder.rest().len().min(MAGIC.len())];
            if !MAGIC.starts_with(begin) {
                return Err(WireError::Version);
            }
            if decoder.raw(MAGIC.len()).is_err() {
                return Ok(None);
            }
            self.begun = true;
            self.position += MAGIC.len();
        }
        let Ok([tag]) = decoder.array::<1>() else { return Ok(None) };
        if ![AT, POSITION, PRINTED, DONE].contains(&tag) {
            return Err(WireError::Tag { tag });
        }
        let Ok(body) = decoder.bytes() else { return Ok(None) };
        let body = body.to_vec();
        self.position += 1 + 8 + body.len();
        Ok(Some(Frame { tag, body }))
    }
}

/// Writes a frame.
pub(crate) fn send(mut to: impl Write, tag: u8, body: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(1 + 8 + body.len());
    frame.push(tag);
    frame.extend((body.len() as u64).to_le_bytes());
    frame.extend(body);
    to.write_all(&frame)
}

/// What a result is: encoded in a frame [`DONE`] as 1 byte, 0 for an error as JSON, 1 for the
/// canonical encoding of the value.
pub(crate) trait Answer: Sized {
    fn encode(&self, to: &mut Encoder);
    fn decode(from: &mut Decoder<'_>) -> Result<Self, WireError>;
}

pub(crate) fn encode_result<T: Answer>(result: &Result<T, EvalError>) -> Vec<u8> {
    let error = match result {
        Ok(value) => {
            let mut encoder = Encoder::default();
            encoder.raw(&[1]);
            value.encode(&mut encoder);
            let bytes = encoder.finish();
            if bytes.len() <= RESULT_BYTES {
                return bytes;
            }
            &EvalError::ResultTooLarge
        }
        Err(error) => error,
    };
    let json = |error: &EvalError| serde_json::to_vec(error);
    let json = json(error).or_else(|_| json(&EvalError::Crashed { message: error.to_string() }));
    [vec![0], json.unwrap_or_default()].concat()
}

pub(crate) fn decode_result<T: Answer>(body: &[u8]) -> Result<Result<T, EvalError>, WireError> {
    match body.split_first() {
        Some((0, json)) => {
            let error = serde_json::from_slice(json);
            Ok(Err(error.map_err(|source| WireError::MalformedError { source })?))
        }
        Some((1, bytes)) => {
            let mut decoder = Decoder::new(bytes);
            let value = T::decode(&mut decoder)?;
            if !decoder.rest().is_empty() {
                return Err(DecodeError::Trailing.into());
            }
            Ok(Ok(value))
        }
        _ => Err(DecodeError::Truncated.into()),
    }
}

impl Answer for Evaluation {
    fn encode(&self, to: &mut Encoder) {
        self.derivations.encode(to);
        self.goals.encode(to);
        self.runners.encode(to);
        let seen: BTreeMap<String, Seen> =
            self.seen.iter().map(|(path, seen)| (path.to_string(), seen.clone())).collect();
        seen.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Evaluation, WireError> {
        let derivations = BTreeMap::decode(from)?;
        let goals: Vec<(String, InputKey)> = Canonical::decode(from)?;
        let runners: BTreeMap<String, Runner> = BTreeMap::decode(from)?;
        let files: BTreeMap<String, Seen> = BTreeMap::decode(from)?;
        let seen = files
            .iter()
            .map(|(path, seen)| match path.parse::<DefinitionPath>() {
                Ok(path) => Ok((path, seen.clone())),
                Err(_) => Err(WireError::Path { path: path.clone() }),
            })
            .collect::<Result<_, _>>()?;
        check_graph(&derivations)?;
        for key in goals.iter().map(|(_, key)| key).chain(runners.values().map(|it| &it.key)) {
            check_input(&derivations, key)?;
        }
        let files = files.into_iter().map(|(path, seen)| (path, seen.digest)).collect();
        Ok(Evaluation { derivations, goals, runners, files, seen })
    }
}

/// Reads a stream of any bytes, as a fuzz target does.
#[cfg(fuzzing)]
pub fn fuzz_answer(bytes: &[u8]) {
    let mut frames = Frames::default();
    for chunk in bytes.chunks(1 << 10) {
        if frames.push(chunk).is_err() {
            return;
        }
        while let Ok(Some(frame)) = frames.next() {
            let _ = decode_result::<Evaluation>(&frame.body);
            let _ = decode_result::<Vec<Listed>>(&frame.body);
        }
    }
}

/// A graph has every derivation under its own hash, and all that they are made from.
fn check_graph(derivations: &BTreeMap<StaticHash, Derivation>) -> Result<(), WireError> {
    for (hash, derivation) in derivations {
        if derivation.static_hash() != *hash {
            return Err(WireError::Hash { hash: *hash });
        }
        for input in derivation.inputs() {
            check_input(derivations, &input.key)?;
        }
    }
    Ok(())
}

fn check_input(
    derivations: &BTreeMap<StaticHash, Derivation>,
    key: &InputKey,
) -> Result<(), WireError> {
    let made = |derivation: &Derivation| derivation.outputs().contains(&key.output);
    match derivations.get(&key.derivation) {
        Some(derivation) if made(derivation) => Ok(()),
        _ => Err(WireError::Incomplete { hash: key.derivation }),
    }
}

impl Answer for Vec<Listed> {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.len() as u64);
        for it in self {
            for text in [&it.attr, &it.name, &it.version, &it.description] {
                to.text(text);
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Vec<Listed>, WireError> {
        let mut listed = Vec::new();
        for _ in 0..from.integer()? {
            let mut text = || from.text().map(str::to_owned);
            listed.push(Listed {
                attr: text()?,
                name: text()?,
                version: text()?,
                description: text()?,
            });
        }
        Ok(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::with_component;

    fn evaluation() -> Evaluation {
        with_component("build(tools = [tool, tool.output(\"dev\")], sources = [source()])")
            .evaluate(&["s.t"])
    }

    fn stream(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (tag, body) in frames {
            send(&mut bytes, *tag, body).expect("memory");
        }
        bytes
    }

    #[test]
    fn an_evaluation_comes_out_as_it_went_in() {
        let evaluation = evaluation();
        let body = encode_result(&Ok(evaluation.clone()));
        let decoded = decode_result::<Evaluation>(&body).expect("well-formed");
        assert_eq!(decoded.expect("no error"), evaluation);
        let listed = vec![Listed {
            attr: "s.t".to_owned(),
            name: "n".to_owned(),
            version: String::new(),
            description: "d".to_owned(),
        }];
        let body = encode_result(&Ok(listed.clone()));
        let decoded = decode_result::<Vec<Listed>>(&body).expect("well-formed");
        assert_eq!(decoded.expect("no error"), listed);
    }

    #[test]
    fn errors_come_out_as_they_went_in() {
        let error = with_component("fail(\"no\")").error("s.t");
        let body = encode_result::<Evaluation>(&Err(error));
        let decoded = decode_result::<Evaluation>(&body).expect("well-formed").expect_err("one");
        let again = with_component("fail(\"no\")").error("s.t");
        assert_eq!(decoded.rendered(), again.rendered());
        let body = encode_result::<Evaluation>(&Err(EvalError::Cancelled));
        let decoded = decode_result::<Evaluation>(&body).expect("well-formed").expect_err("one");
        assert!(matches!(decoded, EvalError::Crashed { .. }), "{decoded:?}");
    }

    #[test]
    fn frames_are_taken_however_the_bytes_arrive() {
        let bytes = stream(&[(AT, b"//main.star"), (PRINTED, b""), (DONE, &[1, 2, 3])]);
        for step in [1, 7, bytes.len()] {
            let mut frames = Frames::default();
            let mut taken = Vec::new();
            for chunk in bytes.chunks(step) {
                frames.push(chunk).expect("short");
                while let Some(frame) = frames.next().expect("well-formed") {
                    taken.push((frame.tag, frame.body));
                }
            }
            let expected =
                [(AT, b"//main.star".to_vec()), (PRINTED, vec![]), (DONE, vec![1, 2, 3])];
            assert_eq!(taken, expected);
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut frames = Frames::default();
            frames.push(bytes)?;
            frames.next().map(|frame| frame.is_some())
        };
        assert!(matches!(refused(b"srp evaluation v0"), Err(WireError::Version)));
        assert!(matches!(refused(&stream(&[(b'x', b"")])), Err(WireError::Tag { tag: b'x' })));
        let mut frames = Frames::default();
        let mebibyte = vec![0; 1 << 20];
        let pushed = (0..100).find_map(|_| frames.push(&mebibyte).err());
        assert!(matches!(pushed, Some(WireError::TooLong)), "{pushed:?}");
    }

    #[test]
    fn a_graph_is_what_its_hashes_say() {
        let sound = evaluation();
        let goal = sound.goals[0].1.derivation;
        let refused = |change: &dyn Fn(&mut Evaluation)| {
            let mut changed = sound.clone();
            change(&mut changed);
            decode_result::<Evaluation>(&encode_result(&Ok(changed))).expect_err("refused")
        };
        let error = refused(&|it| {
            it.derivations.get_mut(&goal).expect("the goal").version = "2".to_owned();
        });
        assert!(matches!(error, WireError::Hash { hash } if hash == goal), "{error}");
        let error = refused(&|it| drop(it.derivations.remove(&goal)));
        assert!(matches!(error, WireError::Incomplete { hash } if hash == goal), "{error}");
        let error = refused(&|it| {
            let input = *it.derivations.keys().find(|hash| **hash != goal).expect("an input");
            it.derivations.remove(&input);
        });
        assert!(matches!(error, WireError::Incomplete { .. }), "{error}");
        let error = refused(&|it| {
            it.goals[0].1.output = "dev".parse().expect("a name");
        });
        assert!(matches!(error, WireError::Incomplete { .. }), "{error}");
    }

    #[test]
    fn damaged_results_are_errors_and_never_panic() {
        let body = encode_result(&Ok(evaluation()));
        for at in 0..body.len() {
            assert!(decode_result::<Evaluation>(&body[..at]).is_err());
            let mut damaged = body.clone();
            damaged[at] ^= 0x80;
            let _ = decode_result::<Evaluation>(&damaged);
            let _ = decode_result::<Vec<Listed>>(&damaged);
        }
    }
}
