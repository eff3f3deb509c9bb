//! Envelopes of attestations, as JSON: each is whole after a round trip, and this key has signed none.
#![no_main]

use srp_store::cache::{Envelope, IN_TOTO, PublicKey};

/// Its secret half is nowhere.
const KEY: &str = "fuzz:l/Jj3yuieZH7QqooMOAtC9haOyTo8tuDQxtju4KUwbw=";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(bytes) else { return };
    let text = serde_json::to_vec(&envelope).expect("an envelope is JSON");
    assert_eq!(serde_json::from_slice::<Envelope>(&text).ok().as_ref(), Some(&envelope));
    let key: PublicKey = KEY.parse().expect("it is a key");
    assert!(envelope.open(IN_TOTO, &[(key.id(), key)].into()).is_err());
});
