//! The command line: one file for each command.
//!
//! Operators' commands speak to the running server over its admin socket. When no server runs, they take the
//! data folder's lock, start the database themselves and do the same through [`crate::admin`].
//!
//! **Invariant:** answers go to standard output, everything else to standard error; a failure ends with 1, a
//! wrong usage with 2, a comparison that found what is still wrong with 3. `doctor` ends with what it found: 1 for
//! warnings, 2 for errors.

mod action;
mod audit;
mod backup;
mod bench;
mod config;
mod desk;
mod doctor;
mod eval;
mod key;
mod limits;
mod manual;
mod operator;
mod output;
mod reembed;
mod tenant;
mod token;
mod top;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use nix::sys::stat::{Mode, umask};

use crate::app::{self, Settings};
use crate::tenancy::Role;

/// A retrieval server for many tenants: documents in, cited answers out, and no tenant ever sees another.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    /// A file of settings; `bulkhead config` tells what can be set.
    #[arg(long, global = true, env = "BULKHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answer with JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The operator's credential; the first one is in the data folder.
    #[arg(long, global = true, value_name = "FILE")]
    operator_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until it is stopped by SIGINT or SIGTERM.
    Serve,
    /// Make, list, suspend, resume and delete tenants.
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// Make, list and revoke a tenant's API keys.
    #[command(subcommand)]
    Key(key::Command),
    /// Sign a short-lived token for a tenant.
    Token(token::Command),
    /// Make operators' credentials.
    #[command(subcommand)]
    Operator(operator::Command),
    /// Embed a tenant's namespaces by another model.
    Reembed(reembed::Command),
    /// Write everything that cannot be made again into one archive.
    Backup(backup::Backup),
    /// Make a data folder of an archive.
    Restore(backup::Restore),
    /// Make a key that backups are encrypted for.
    BackupKey(backup::BackupKey),
    /// Examine the audit log's chains, or write the log into a file that can be examined anywhere.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Compare what is kept twice, and put it right.
    Verify(verify::Verify),
    /// Write vector indexes anew.
    Rebuild(verify::Rebuild),
    /// Measure a server of its own against its raw parts.
    Bench(bench::Bench),
    /// Measure how well a server retrieves.
    #[command(subcommand)]
    Eval(eval::Command),
    /// Tell what is wrong with machine, configuration and stores, and how to mend it.
    Doctor(doctor::Doctor),
    /// Print every setting with its default and meaning, or check those in use.
    Config(config::Command),
    /// Print what a shell needs to complete command lines.
    Completions(manual::Completions),
    /// Write the manual pages, one for each command.
    Man(manual::Man),
}

impl Global {
    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(crate::config::load(self.config.as_deref())?)
    }
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    // Whatever is made from here on is its owner's alone, also what libraries make.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            match error.downcast_ref::<verify::FaultsRemain>() {
                Some(_) => ExitCode::from(verify::FaultsRemain::CODE),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    let done = |done: anyhow::Result<()>| done.map(|()| ExitCode::SUCCESS);
    let answer = match command {
        Command::Doctor(doctor) => return block_on(doctor.run(&global)),
        Command::Serve => return done(block_on(app::run(global.settings()?))),
        Command::Audit(command) => return done(block_on(command.run(&global))),
        Command::Verify(verify) => return done(block_on(verify.run(&global))),
        Command::Bench(bench) => return done(block_on(bench.run(&global))),
        Command::Eval(command) => return done(block_on(command.run(&global))),
        Command::Config(command) => return done(command.run(&global)),
        Command::Completions(command) => return done(command.run(Cli::command())),
        Command::Man(command) => return done(command.run(Cli::command())),
        Command::Tenant(command) => block_on(command.run(&global))?,
        Command::Key(command) => block_on(command.run(&global))?,
        Command::Token(command) => block_on(command.run(&global))?,
        Command::Operator(command) => block_on(command.run(&global))?,
        Command::Reembed(command) => block_on(command.run(&global))?,
        Command::Rebuild(command) => block_on(command.run(&global))?,
        Command::Backup(command) => block_on(command.run(&global))?,
        Command::Restore(command) => block_on(command.run(&global))?,
        Command::BackupKey(command) => command.run()?,
    };
    done(output::print(&answer.render(global.json)?))
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

/// A role by its name on the wire.
fn role(raw: &str) -> Result<Role, String> {
    Role::from_name(raw).ok_or_else(|| "one of reader, writer, tenant_admin".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_scripts_lines_are_understood() {
        for line in [
            "bulkhead --json tenant create --name N --slug S --reason R",
            "bulkhead --json tenant list",
            "bulkhead --json key create --tenant ID --role writer --name demo --reason demo",
            "bulkhead key create --tenant t --role reader --role writer --name a --reason r --expires-in 30d",
            "bulkhead tenant list --json --config file.toml",
            "bulkhead tenant top --by bytes --limit 5 --json",
            "bulkhead token --tenant t --role reader",
            "bulkhead reembed --tenant t --namespace n --model hashing --json",
            "bulkhead reembed --tenant t --all --model hashing --reason r",
            "bulkhead tenant placement shared --tenant t --reason r --json",
            "bulkhead verify",
            "bulkhead backup --to DIR --recipient age1x --recipient age1y --keep 7 --keep-days 30 --json",
            "bulkhead backup --to s3://bucket/prefix --passphrase-file FILE",
            "bulkhead backup --to DIR --unencrypted",
            "bulkhead backup-key FILE",
            "bulkhead restore --from DIR --archive NAME --identity FILE --replace",
            "bulkhead restore --from DIR --check",
            "bulkhead verify --tenant t --namespace n --repair --json",
            "bulkhead rebuild --all",
            "bulkhead audit verify --json",
            "bulkhead audit usage --tenant t --since 2026-01-01T00:00:00Z",
            "bulkhead audit verify --tenant t",
            "bulkhead audit verify --file FILE --json",
            "bulkhead audit export --tenant t --since 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z --output FILE",
            "bulkhead audit export --output FILE --reason R",
            "bulkhead rebuild --tenant t --namespace n",
            "bulkhead rebuild --tenant t --index graph",
            "bulkhead verify --index vectors",
            "bulkhead config --check",
            "bulkhead doctor --json",
            "bulkhead serve",
            "bulkhead completions fish",
            "bulkhead man target/man",
            "bulkhead bench --full --only question --only delete",
            "bulkhead eval retrieval DIR OTHER --limit-queries 5 --vector-cache CACHE --output FILE",
            "bulkhead --json eval retrieval DIR --url http://127.0.0.1:9621 --key FILE",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_a_wrong_usage() {
        for line in [
            "bulkhead",
            "bulkhead tenant create --name N",
            "bulkhead tenant top --by beauty",
            "bulkhead tenant placement elsewhere --tenant t --reason r",
            "bulkhead eval retrieval",
            "bulkhead eval retrieval DIR --url http://127.0.0.1:9621",
            "bulkhead bench --only nothing",
            "bulkhead tenant delete --tenant t --reason r",
            "bulkhead backup",
            "bulkhead backup --to DIR --recipient age1x --unencrypted",
            "bulkhead restore --from DIR --check --replace",
            "bulkhead verify --namespace n",
            "bulkhead rebuild",
            "bulkhead audit export --tenant t",
            "bulkhead audit export --since yesterday --output FILE",
            "bulkhead audit verify --tenant t --file FILE",
            "bulkhead rebuild --all --tenant t",
            "bulkhead rebuild --tenant t --index nothing",
            "bulkhead reembed --tenant t --model hashing",
            "bulkhead reembed --tenant t --all --namespace n --model hashing",
            "bulkhead key create --tenant t --name a --reason r",
            "bulkhead key create --tenant t --role king --name a --reason r",
            "bulkhead key create --tenant t --role reader --name a --reason r --expires-in soon",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
