//! The program `hps`: checks, loads, verifies, inspects and compacts what a configuration stores, without torch and without
//! serving it.
//!
//! ```text
//! main.rs        arguments, exit status
//! deployment.rs  a configuration with its tables, files and database
//! check.rs load.rs verify.rs inspect.rs compact.rs   a command each: what it did, for people and as JSON
//! output.rs      both ways of saying it
//! ```

#![forbid(unsafe_code)]

mod check;
mod compact;
mod deployment;
mod inspect;
mod load;
mod output;
mod verify;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hps_core::Result;

use crate::deployment::Deployment;
use crate::output::Outcome;

/// Checks, loads, verifies and inspects embedding tables that hps serves.
///
/// Ends with status 0 if all is well, 1 if something is wrong, 2 if it was called wrongly. Progress and warnings are told on stderr;
/// HPS_LOG=warn or HPS_LOG=off silences them.
#[derive(Parser)]
#[command(name = "hps", version, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Args)]
struct Named {
    /// The configuration (ps.json); found like the op's argument, HPS_CONFIG_DIR and HPS_CONFIG_FILE included
    #[arg(value_name = "PS_JSON")]
    config: String,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration, its model files and its database; says what a start would do and need. Changes nothing
    Check(Named),
    /// Load model files into the database, as a start would; what is loaded already stays
    Load(Named),
    /// Read every row of the database, and compare it with the model files. Works beside a process that serves it
    Verify {
        #[command(flatten)]
        named: Named,
        /// Only read the database: checksums, sizes, number of rows
        #[arg(long)]
        no_files: bool,
    },
    /// Show what the database holds: tables, rows, bytes, where they came from. Works beside a process that serves it
    Inspect(Named),
    /// Make every table one sorted run again, which many updates have fragmented
    Compact(Named),
}

fn run(command: &Command) -> Result<Outcome> {
    match command {
        Command::Check(named) => check::run(&Deployment::read(&named.config)?),
        Command::Load(named) => load::run(&Deployment::read(&named.config)?),
        Command::Verify { named, no_files } => verify::run(&Deployment::read(&named.config)?, !no_files),
        Command::Inspect(named) => inspect::run(&Deployment::read(&named.config)?),
        Command::Compact(named) => compact::run(&Deployment::read(&named.config)?),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = run(&arguments.command).unwrap_or_else(|error| Outcome::failed(&error));
    outcome.print(arguments.json);
    if outcome.is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
