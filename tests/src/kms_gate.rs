//! What AWS KMS does and moto does not, on the way between a client and moto; and what a service does on a bad day.
//!
//! Each rule names the place where AWS says so. All else is moto's own answer, byte for byte.
//!
//! | moto | AWS KMS, and so the gate |
//! |---|---|
//! | uses keys in every state | refuses by `DisabledException`, `KMSInvalidStateException`, `NotFoundException` [developer guide, key states] |
//! | ignores `DryRun` | answers a try that would succeed by `DryRunOperationException`, 412 [API reference, Decrypt] |
//! | takes the key out of the blob: other keys and changed ids are `AccessDeniedException` or not seen at all | `IncorrectKeyException` for another key, `NotFoundException` for none, `InvalidCiphertextException` for what no key made [API reference, Decrypt] |
//! | runs the pairs of a context together, so they can be cut elsewhere | takes each pair by itself [developer guide, encryption context] |
//! | says in XML that somebody may not | says `AccessDeniedException` in JSON 1.1, and the names of common errors [API reference, common errors] |
//!
//! Faults are of the service: [`Gate::say`] answers in its place, [`Gate::limit`] lets so many calls pass in a second.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What can become of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Is as it was made.
    Enabled,
    /// Refuses every use.
    Disabled,
    /// Refuses every use, and goes.
    PendingDeletion,
    /// Has no material.
    PendingImport,
    /// Is in a key store that is away.
    Unavailable,
    /// Is being made.
    Creating,
    /// Is no more.
    Gone,
}

/// Listens for as long as the test runs.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    rules: Arc<Mutex<Rules>>,
}

#[derive(Debug, Default)]
struct Rules {
    /// By key id; enabled if it is not here.
    states: BTreeMap<String, KeyState>,
    /// The ids of all that were made.
    keys: BTreeSet<String>,
    /// Key ids by alias.
    aliases: BTreeMap<String, String>,
    /// By blob: the key and the context that it was made with.
    made: BTreeMap<String, (String, Value)>,
    /// What is said in place of the next answers.
    says: VecDeque<(u16, String, String)>,
    /// After so many calls that pass.
    says_after: usize,
    limit: Option<Limit>,
    calls: Vec<String>,
    refused: usize,
}

#[derive(Debug)]
struct Limit {
    per_second: u32,
    since: Instant,
    passed: u32,
}

impl Gate {
    /// Before moto, a port of this machine.
    ///
    /// # Panics
    /// If there is no port.
    #[must_use]
    pub fn before(moto: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its port").port();
        let rules = Arc::<Mutex<Rules>>::default();
        let shared = Arc::clone(&rules);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let rules = Arc::clone(&shared);
                // A connection that breaks off is the client's business.
                thread::spawn(move || drop(serve(&client, moto, &rules)));
            }
        });
        Self { port, rules }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Says what a key is from now on, by its ARN or alias.
    pub fn set_state(&self, key: &str, state: KeyState) {
        let mut rules = self.rules();
        let id = rules.id(key);
        rules.states.insert(id, state);
    }

    /// Answers the next call by an error of that name.
    pub fn say(&self, status: u16, name: &str, message: &str) {
        let said = (status, name.to_owned(), message.to_owned());
        self.rules().says.push_back(said);
    }

    /// Answers a call by an error of that name after so many have passed.
    pub fn say_after(&self, calls: usize, status: u16, name: &str, message: &str) {
        self.rules().says_after = calls;
        self.say(status, name, message);
    }

    /// Lets so many calls pass in a second, and refuses the others as throttled.
    pub fn limit(&self, per_second: u32) {
        self.rules().limit = Some(Limit {
            per_second,
            since: Instant::now(),
            passed: 0,
        });
    }

    /// The calls that came since this was asked last, in order.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.rules().calls)
    }

    /// How many calls were throttled so far.
    #[must_use]
    pub fn throttled(&self) -> usize {
        self.rules().refused
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        lock(&self.rules)
    }
}

fn lock(rules: &Mutex<Rules>) -> MutexGuard<'_, Rules> {
    rules.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call or an answer: its first line and headers as they came, and its body.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1);
        status.and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Of an error, as KMS says it.
    fn error(status: u16, name: &str, message: &str) -> Self {
        let body = json!({ "__type": name, "message": message }).to_string();
        Self {
            head: format!(
                "HTTP/1.1 {status} Error\r\nContent-Type: application/x-amz-json-1.1\r\nx-amzn-RequestId: of-the-gate\r\n\
                 Content-Length: {}\r\n\r\n",
                body.len()
            ),
            body: body.into(),
        }
    }
}

/// Reads one message; none if the connection ends before it.
fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Message>> {
    let mut message = Message {
        head: String::new(),
        body: Vec::new(),
    };
    while !message.head.ends_with("\r\n\r\n") {
        if from.read_line(&mut message.head)? == 0 {
            return Ok(None);
        }
    }
    let length = message
        .header("content-length")
        .and_then(|length| length.parse().ok());
    message.body.resize(length.unwrap_or(0), 0);
    from.read_exact(&mut message.body)?;
    Ok(Some(message))
}

fn serve(client: &TcpStream, moto: u16, rules: &Mutex<Rules>) -> io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let mut to = client;
    client.set_nodelay(true)?;
    while let Some(asked) = read(&mut from)? {
        let answer = answer(&asked, moto, rules)?;
        to.write_all(&[answer.head.as_bytes(), &answer.body].concat())?;
        if asked.head.contains("HTTP/1.0") || answer.header("connection") == Some("close") {
            return Ok(());
        }
    }
    Ok(())
}

fn answer(asked: &Message, moto: u16, rules: &Mutex<Rules>) -> io::Result<Message> {
    let call = asked
        .header("x-amz-target")
        .and_then(|target| target.strip_prefix("TrentService."));
    let call = call.unwrap_or_default().to_owned();
    let body = asked.json();
    if let Some(refused) = lock(rules).refusal(&call, &body) {
        return Ok(refused);
    }
    let mut server = TcpStream::connect(("127.0.0.1", moto))?;
    server.write_all(&[asked.head.as_bytes(), &asked.body].concat())?;
    let answer = read(&mut BufReader::new(server))?;
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(lock(rules).corrected(&call, &body, answer))
}

impl Rules {
    /// The id of a key by any of its names.
    fn id(&self, key: &str) -> String {
        let name = key.rsplit(':').next().unwrap_or(key);
        let id = name.strip_prefix("key/").unwrap_or(name);
        let alias = format!("alias/{}", id.trim_start_matches("alias/"));
        self.aliases
            .get(&alias)
            .cloned()
            .unwrap_or_else(|| id.to_owned())
    }

    /// What is said before moto is asked.
    fn refusal(&mut self, call: &str, body: &Value) -> Option<Message> {
        self.calls.push(call.to_owned());
        if self.says_after > 0 {
            self.says_after -= 1;
        } else if let Some((status, name, message)) = self.says.pop_front() {
            return Some(Message::error(status, &name, &message));
        }
        if self.is_over_limit() {
            self.refused += 1;
            let message = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
            return Some(Message::error(400, "ThrottlingException", message));
        }
        for field in ["KeyId", "SourceKeyId", "DestinationKeyId"] {
            let Some(key) = body[field].as_str() else {
                continue;
            };
            let id = self.id(key);
            let state = self.states.get(&id).copied().unwrap_or(KeyState::Enabled);
            if let Some(refused) = unusable(call, key, state) {
                return Some(refused);
            }
        }
        let (key, context) = match call {
            "Decrypt" => ("KeyId", "EncryptionContext"),
            "ReEncrypt" => ("SourceKeyId", "SourceEncryptionContext"),
            _ => return None,
        };
        let blob = body["CiphertextBlob"].as_str().unwrap_or_default();
        let Some((made_by, made_for)) = self.made.get(blob) else {
            return Some(Message::error(400, "InvalidCiphertextException", ""));
        };
        let asked = self.id(body[key].as_str().unwrap_or_default());
        if !self.keys.contains(&asked) {
            let message = format!("Key '{asked}' does not exist");
            return Some(Message::error(400, "NotFoundException", &message));
        }
        if *made_by != asked {
            let message = "The key ID in the request does not identify a CMK that can perform this operation.";
            return Some(Message::error(400, "IncorrectKeyException", message));
        }
        (*made_for != pairs(&body[context]))
            .then(|| Message::error(400, "InvalidCiphertextException", ""))
    }

    fn is_over_limit(&mut self) -> bool {
        let Some(limit) = &mut self.limit else {
            return false;
        };
        if limit.since.elapsed() >= Duration::from_secs(1) {
            limit.since = Instant::now();
            limit.passed = 0;
        }
        limit.passed += 1;
        limit.passed > limit.per_second
    }

    /// What moto's answer should have been; and what is learned from it.
    fn corrected(&mut self, call: &str, body: &Value, answer: Message) -> Message {
        let status = answer.status();
        if status == 403 && !answer.body.starts_with(b"{") {
            let said = String::from_utf8_lossy(&answer.body);
            let name = match () {
                () if said.contains("SignatureDoesNotMatch") => "InvalidSignatureException",
                () if said.contains("InvalidClientTokenId") => "UnrecognizedClientException",
                () => "AccessDeniedException",
            };
            let message =
                format!("User: … is not authorized to perform: kms:{call} on this resource");
            return Message::error(400, name, &message);
        }
        if status != 200 {
            return answer;
        }
        if body["DryRun"] == json!(true) {
            let message = "The request would have succeeded, but the DryRun option is set.";
            return Message::error(412, "DryRunOperationException", message);
        }
        let said = answer.json();
        let mut made = |blob: &Value, context: &Value| {
            let id = self.id(said["KeyId"].as_str().unwrap_or_default());
            let blob = blob.as_str().unwrap_or_default().to_owned();
            self.made.insert(blob, (id, pairs(context)));
        };
        match call {
            "GenerateDataKeyWithoutPlaintext" => {
                made(&said["CiphertextBlob"], &body["EncryptionContext"])
            }
            "ReEncrypt" => made(
                &said["CiphertextBlob"],
                &body["DestinationEncryptionContext"],
            ),
            "CreateKey" => {
                let id = said["KeyMetadata"]["KeyId"].as_str();
                self.keys.extend(id.map(str::to_owned));
            }
            "CreateAlias" | "UpdateAlias" => {
                let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
                self.aliases.insert(text("AliasName"), text("TargetKeyId"));
            }
            _ => {}
        }
        let next = match call {
            "DisableKey" | "CancelKeyDeletion" => KeyState::Disabled,
            "EnableKey" => KeyState::Enabled,
            "ScheduleKeyDeletion" => KeyState::PendingDeletion,
            _ => return answer,
        };
        let id = self.id(body["KeyId"].as_str().unwrap_or_default());
        self.states.insert(id, next);
        answer
    }
}

/// A context that is not given is an empty one.
fn pairs(context: &Value) -> Value {
    if context.is_null() {
        json!({})
    } else {
        context.clone()
    }
}

/// What is said of a key in a state. [AWS KMS developer guide, key states]
fn unusable(call: &str, key: &str, state: KeyState) -> Option<Message> {
    let uses = matches!(
        call,
        "Decrypt" | "ReEncrypt" | "GenerateDataKeyWithoutPlaintext" | "GenerateDataKey" | "Encrypt"
    );
    let words = match state {
        KeyState::Enabled => return None,
        KeyState::Gone => {
            return Some(Message::error(
                400,
                "NotFoundException",
                &format!("Key '{key}' does not exist"),
            ));
        }
        _ if !uses => return None,
        KeyState::Disabled => {
            return Some(Message::error(
                400,
                "DisabledException",
                &format!("{key} is disabled."),
            ));
        }
        KeyState::PendingDeletion => "pending deletion",
        KeyState::PendingImport => "pending import",
        KeyState::Unavailable => "unavailable",
        KeyState::Creating => "creating",
    };
    Some(Message::error(
        400,
        "KMSInvalidStateException",
        &format!("{key} is {words}."),
    ))
}
