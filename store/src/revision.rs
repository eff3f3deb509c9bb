//! Revisions of what turns a derivation into an object.
//!
//! They are part of every derivation's hash: raise one when the same derivation could come out
//! differently from now on. Each is a number and not a version of srp, so that an upgrade of srp
//! alone never rebuilds anything.

/// What a build can see and do: paths, environment, devices, limits that it can observe.
pub const SANDBOX: u64 = 2;
/// What is done to an output before it is hashed.
pub const NORMALISER: u64 = 1;
/// Which references are found in an output, and what fails it.
pub const SCANNER: u64 = 2;
/// What an archive becomes when it is unpacked.
pub const UNPACKER: u64 = 2;
