//! What a finished command left: its exit code and what it printed, with assertions that show all of it when they fail.

use std::process::Command;

/// The result of a command that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` to its end, with nothing on standard input.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn of(command: &mut Command) -> Self {
        let output = command
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Self {
            command: format!("{command:?}"),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts exit code 0.
    ///
    /// # Panics
    /// With the whole outcome, if the command failed.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Asserts this exit code, and that the message on standard error has each of `words` (in any case).
    ///
    /// # Panics
    /// With the whole outcome, if it is another one.
    #[track_caller]
    pub fn failed_with(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self.says(words)
    }

    /// Asserts that standard error has each of `words` (in any case).
    ///
    /// # Panics
    /// With the whole outcome, if a word is missing.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let text = self.stderr.to_lowercase();
        for word in words {
            assert!(
                text.contains(&word.to_lowercase()),
                "the message does not say '{word}': {self}"
            );
        }
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// With the whole outcome, if it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "{command}\nexit code: {code:?}\nstandard output:\n{stdout}\nstandard error:\n{stderr}"
        )
    }
}
