//! What `sealvold` may be told at its start.

use std::path::PathBuf;

use clap::Parser;

/// Encrypted block-volume daemon.
///
/// With --state-dir and --runtime-dir and nothing else it works: the embedded key service `local`
/// has the key `default`, its master key in a file of the state directory that only the daemon's user
/// can read. It runs in the foreground, logs to standard error (SEALVOL_LOG sets how much), and stops
/// on SIGTERM and SIGINT: it answers what is outstanding, commits every volume and wipes its keys.
#[derive(Clone, Debug, Parser)]
#[command(name = "sealvold", version, max_term_width = 100)]
pub struct Args {
    /// Configuration (TOML); root or the daemon's user must own it, nobody else may write it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Registry, audit log, keys of the embedded key service, and layers without another place
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sealvol")]
    pub state_dir: PathBuf,
    /// Sockets: control.sock and nbd.sock
    #[arg(long, value_name = "DIR", default_value = "/run/sealvol")]
    pub runtime_dir: PathBuf,
    /// Serve NBD here too: nbd+unix:///?socket=PATH, or nbd://HOST:PORT (no host: 127.0.0.1)
    #[arg(long, value_name = "URI")]
    pub listen: Vec<String>,
    /// Allow TCP in --listen, where everybody who reaches the port may read and write every volume
    #[arg(long)]
    pub insecure_plaintext_tcp: bool,
    /// Derive the embedded key service's master key from the passphrase in this open file descriptor
    /// (a file, not a pipe: it is read once for each use)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..))]
    pub passphrase_fd: Option<u32>,
    /// Log JSON, one object a line
    #[arg(long)]
    pub log_json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn standard_streams_are_no_passphrase() {
        assert!(Args::try_parse_from(["sealvold", "--passphrase-fd", "0"]).is_err());
        let args = Args::try_parse_from(["sealvold", "--passphrase-fd", "3"]).expect("valid");
        assert_eq!(args.passphrase_fd, Some(3));
    }
}
