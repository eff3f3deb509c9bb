//! A real browser for the tests: headless Chromium, driven by WebDriver through `chromedriver`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::host::{is_root, skipped};
use super::processes::eventually;

/// How WebDriver names the reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys as WebDriver writes them.
pub(crate) const TAB: char = '\u{e004}';
pub(crate) const BACKSPACE: char = '\u{e003}';
pub(crate) const ENTER: char = '\u{e007}';

/// A running browser with one window; it ends with the value.
pub(crate) struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    _profile: tempfile::TempDir,
}

/// An element of the page that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element(String);

impl Browser {
    /// Starts it, if it is installed; else says loudly what is not tested.
    pub(crate) fn start(what: &str) -> Option<Browser> {
        Browser::with(what, &json!({}))
    }

    /// As [`Browser::start`], and pages' scripts don't run.
    pub(crate) fn without_scripts(what: &str) -> Option<Browser> {
        Browser::with(what, &json!({ "profile.managed_default_content_settings.javascript": 2 }))
    }

    fn with(what: &str, preferences: &Value) -> Option<Browser> {
        let (Some(chromium), Some(chromedriver)) = (program("chromium"), program("chromedriver"))
        else {
            skipped(what, "there is no browser (Debian: chromium chromium-driver)");
            return None;
        };
        let mut command = Command::new(chromedriver);
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port: u16 = lines
            .find_map(|line| line.strip_suffix('.')?.rsplit_once(" on port ")?.1.parse().ok())
            .expect("chromedriver says where it listens");
        // Who writes to a pipe that is closed ends.
        std::thread::spawn(move || lines.count());
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)));
        let profile = tempfile::tempdir().unwrap();
        let session = format!("http://127.0.0.1:{port}/session");
        let agent = config.build().into();
        let mut browser = Browser { driver, agent, session, _profile: profile };
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--window-size=1280,900".to_owned(),
            format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        if is_root() {
            // Chromium refuses to have its own sandbox then.
            arguments.push("--no-sandbox".to_owned());
        }
        let capabilities = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "goog:chromeOptions":
                { "binary": chromium, "args": arguments, "prefs": preferences },
        });
        let made = browser.post("", json!({ "capabilities": { "alwaysMatch": capabilities } }));
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        Some(browser)
    }

    pub(crate) fn open(&self, path: &Path) {
        self.post("/url", json!({ "url": format!("file://{}", path.display()) }));
    }

    pub(crate) fn back(&self) {
        self.post("/back", json!({}));
    }

    pub(crate) fn title(&self) -> String {
        text(self.get("/title"))
    }

    /// The one element that a CSS selector finds.
    pub(crate) fn find(&self, css: &str) -> Element {
        let mut found = self.all(css);
        assert_eq!(found.len(), 1, "{css}");
        found.remove(0)
    }

    pub(crate) fn all(&self, css: &str) -> Vec<Element> {
        let found = self.post("/elements", json!({ "using": "css selector", "value": css }));
        let id = |element: &Value| Element(element[ELEMENT].as_str().unwrap().to_owned());
        found.as_array().unwrap().iter().map(id).collect()
    }

    /// What a person would read in an element.
    pub(crate) fn text(&self, element: &Element) -> String {
        text(self.get(&format!("/element/{}/text", element.0)))
    }

    pub(crate) fn texts(&self, css: &str) -> Vec<String> {
        self.all(css).iter().map(|element| self.text(element)).collect()
    }

    /// What a screen reader calls an element.
    pub(crate) fn label(&self, element: &Element) -> String {
        text(self.get(&format!("/element/{}/computedlabel", element.0)))
    }

    pub(crate) fn attribute(&self, element: &Element, name: &str) -> Option<String> {
        let value = self.get(&format!("/element/{}/attribute/{name}", element.0));
        value.as_str().map(str::to_owned)
    }

    pub(crate) fn is_shown(&self, element: &Element) -> bool {
        self.get(&format!("/element/{}/displayed", element.0)).as_bool().unwrap()
    }

    /// Clicks with the mouse where an element is; fails if something else is there.
    pub(crate) fn click(&self, element: &Element) {
        self.post(&format!("/element/{}/click", element.0), json!({}));
    }

    /// Presses keys, wherever the focus is.
    pub(crate) fn press(&self, keys: &str) {
        let press = |key: char| {
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        };
        let keys: Vec<Value> = keys.chars().flat_map(press).collect();
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": keys }]);
        self.post("/actions", json!({ "actions": actions }));
    }

    /// The element that keys go to.
    pub(crate) fn focused(&self) -> Element {
        Element(self.get("/element/active")[ELEMENT].as_str().unwrap().to_owned())
    }

    /// Presses Tab until a link or button of this text has the focus.
    pub(crate) fn tab_to(&self, wanted: &str) {
        for _ in 0..60 {
            self.press(&TAB.to_string());
            let focused = self.focused();
            if self.text(&focused) == wanted {
                return;
            }
        }
        panic!("Tab never came to {wanted:?}");
    }

    /// What a function's body returns in the page.
    pub(crate) fn evaluate(&self, body: &str) -> Value {
        self.post("/execute/sync", json!({ "script": body, "args": [] }))
    }

    pub(crate) fn print(&self) {
        self.post("/print", json!({}));
    }

    /// Prefers what is dark, or light.
    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command =
            json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.post("/goog/cdp/execute", command);
    }

    /// The picture of the window, as a PNG file.
    pub(crate) fn picture(&self) -> Vec<u8> {
        STANDARD.decode(text(self.get("/screenshot"))).unwrap()
    }

    /// What the console says since this was last asked: mistakes, and what a policy forbids.
    pub(crate) fn console(&self) -> Vec<String> {
        self.log("browser").into_iter().map(|entry| entry["message"].to_string()).collect()
    }

    /// The addresses that were asked for since this was last asked.
    pub(crate) fn requests(&self) -> Vec<String> {
        let url = |entry: &Value| {
            let entry: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &entry["message"];
            let asked = message["method"] == "Network.requestWillBeSent";
            asked.then(|| message["params"]["request"]["url"].as_str().unwrap().to_owned())
        };
        self.log("performance").iter().filter_map(url).collect()
    }

    /// Fails unless everybody can read the page, by dark and by light.
    pub(crate) fn assert_accessible(&self) {
        assert_eq!(self.evaluate(include_str!("structure.js")), json!([]));
        for (scheme, light) in [("dark", false), ("light", true)] {
            self.prefer(scheme);
            let found = self.evaluate(include_str!("contrast.js"));
            assert_eq!(found["faint"], json!([]), "{scheme}");
            assert!(found["looked"].as_u64().unwrap() > 20, "{found}");
            assert_eq!(found["canvas"].as_f64().unwrap() > 0.5, light, "{found}");
        }
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        self.post("/se/log", json!({ "type": kind })).as_array().unwrap().clone()
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.agent.get(format!("{}{path}", self.session)).call();
        value(path, answer.unwrap())
    }

    fn post(&self, path: &str, body: Value) -> Value {
        let request = self.agent.post(format!("{}{path}", self.session));
        let request = request.header("content-type", "application/json");
        value(path, request.send(body.to_string()).unwrap())
    }
}

fn value(path: &str, mut answer: ureq::http::Response<ureq::Body>) -> Value {
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(64 << 20).read_to_string().unwrap();
    assert!(status.is_success(), "{path}: {status}: {body}");
    let mut answer: Value = serde_json::from_str(&body).unwrap();
    answer["value"].take()
}

fn text(value: Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|it| it.is_file())
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends the browser, whose profile is removed then.
        let _ = self.agent.delete(&self.session).call();
        let profile = self._profile.path().display().to_string();
        eventually(|| super::processes::processes_with(&profile).is_empty());
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
