//! Builds that attack srp's own processes, or look for the host.

use crate::harness::{Test, tests};
use crate::support::Place;

pub(crate) const TESTS: &[Test] = tests![an_ordinary_build_succeeds];

/// Without this, all that is refused here might be refused for another reason.
fn an_ordinary_build_succeeds() {
    let place = Place::new(r#"return {"": sh("fine", "echo > $out/usr/file")}"#);
    let path = place.realise("t.x");
    assert!(path.join("usr/file").is_file());
    place.assert_tidy();
}
