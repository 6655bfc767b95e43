//! The `quaymaster` command: arguments in, exit code out.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use quaymaster::cli::{
    self, config, doctor, enrich, exec, list, local, manual, outbox, ports, processes, run, schema,
    top, topics, whois,
};
use quaymaster::config::Overrides;
use quaymaster::model::record::pns_text;
use quaymaster::procfs::ProcessTable;

/// Keeps the tally of every container on this host and streams it to Kafka, NATS or stdout.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration, 69 what it needs is not there,
/// 77 no permission.
#[derive(Debug, Parser)]
#[command(name = "quaymaster", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch all runtimes and publish what changes, until SIGTERM
    Run(Box<run::RunArgs>),
    /// Print all containers of all runtimes
    List(list::ListArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Add the container to process events: join a topic of events with the mappings
    Enrich(Box<enrich::EnrichArgs>),
    /// Say whose a process, a PID namespace or a container is
    Whois(whois::WhoisArgs),
    /// Print the host's processes with their containers, or send them to the bus
    Processes(Box<local::SnapshotArgs>),
    /// Print the listening sockets with their processes and containers, or send them to the bus
    Ports(Box<local::SnapshotArgs>),
    /// Watch a running collector, by where it listens
    Top(top::TopArgs),
    /// Create, check, show or tidy up the topics of the bus
    Topics {
        #[command(flatten)]
        overrides: Box<Overrides>,
        #[command(subcommand)]
        command: topics::TopicsCommand,
    },
    /// Show, check or give an example of the configuration
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Look at all that the daemon needs, and say what to do about what is not well
    Doctor(Box<doctor::DoctorArgs>),
    /// Show what is owed to the bus, and show, export or drop what it refused
    Outbox {
        #[command(subcommand)]
        command: outbox::OutboxCommand,
    },
    /// Print the schema of a kind of message, or of the topics
    Schema {
        /// Which
        #[arg(value_enum)]
        schema: schema::Schema,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// Where to
        directory: PathBuf,
    },
}

/// The command line as it is read: a variable that is set to nothing is not set, and one that stands for a flag takes 1, yes
/// and the like; what is said of the bus may stand behind the subcommands of `topics` too.
fn command_line() -> clap::Command {
    let command = read_variables(Arguments::command());
    command.mut_subcommand("topics", |topics| topics.mut_args(|arg| arg.global(true)))
}

fn read_variables(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let is_empty = arg
                .get_env()
                .is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
            let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let arg = if is_empty { arg.env(None::<&str>) } else { arg };
            if is_flag {
                arg.value_parser(FalseyValueParser::new())
            } else {
                arg
            }
        })
        .mut_subcommands(read_variables)
}

fn main() -> ExitCode {
    let matches = command_line().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let ready = match ready(&arguments.command) {
        Ok(ready) => ready,
        Err(failure) => return ExitCode::from(ended(Err(failure), &mut std::io::stderr())),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "quaymaster: no threads to be had: {error}"
            );
            return ExitCode::from(cli::EXIT_FAILURE);
        }
    };
    let code = runtime.block_on(dispatch(&arguments.command, ready, &matches));
    // A task that hangs in a system call must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// The daemon gives up its privileges before there are threads that would keep them.
fn ready(command: &Command) -> Result<Ready, cli::Failure> {
    if let Command::Run(args) = command {
        run::ready(args).map(|ready| Ready::Run(Box::new(ready)))
    } else if let Command::Enrich(args) = command {
        enrich::ready(args).map(|ready| Ready::Enrich(Box::new(ready)))
    } else {
        Ok(Ready::Nothing)
    }
}

/// What was got before privileges were given up.
#[derive(Debug)]
enum Ready {
    Run(Box<run::Ready>),
    Enrich(Box<enrich::Ready>),
    /// By the subcommands that end soon, which give up nothing.
    Nothing,
}

async fn dispatch(command: &Command, ready: Ready, matches: &ArgMatches) -> u8 {
    let mut out = std::io::stdout();
    let mut err = std::io::stderr();
    match ready {
        Ready::Run(ready) => return ended(run::run(*ready).await, &mut err),
        Ready::Enrich(ready) => return ended(enrich::run(*ready).await, &mut err),
        Ready::Nothing => {}
    }
    match command {
        // They have run above.
        Command::Run(_) | Command::Enrich(_) => cli::EXIT_FAILURE,
        Command::List(args) => {
            let processes = ProcessTable::open(Path::new("/proc")).ok();
            let pns_of = move |pid| Some(pns_text(processes.as_ref()?.pns_inode(pid)?));
            list::run(args, &pns_of, &mut out, &mut err).await
        }
        Command::Exec(args) => exec::run(args, &mut out, &mut err).await,
        Command::Whois(args) => whois::run(args, &mut out, &mut err).await,
        Command::Processes(args) => processes::run(args, &mut out, &mut err).await,
        Command::Ports(args) => ports::run(args, &mut out, &mut err).await,
        Command::Topics { overrides, command } => ended(
            topics::configured(overrides, *command, &mut out).await,
            &mut err,
        ),
        Command::Config { command } => {
            let matches = matches.subcommand_matches("config");
            ended(config::run(command, matches, &mut out).await, &mut err)
        }
        Command::Doctor(args) => ended(doctor::run(args, &mut out).await, &mut err),
        Command::Outbox { command } => ended(outbox::run(command, &mut out), &mut err),
        Command::Top(args) => top::run(args, &mut err).await,
        Command::Completions { shell } => {
            let completions = manual::completions(command_line(), *shell, &mut out);
            ended(completions, &mut err)
        }
        Command::Man { directory } => ended(manual::man(command_line(), directory), &mut err),
        Command::Schema { schema } => ended(schema::run(*schema, &mut out), &mut err),
    }
}

/// The exit code of a subcommand; what went wrong is told on stderr.
fn ended(result: Result<(), cli::Failure>, err: &mut impl std::io::Write) -> u8 {
    match result {
        Ok(()) => cli::EXIT_OK,
        Err(failure) => {
            // When even stderr is closed there is nobody left to tell.
            let _ = writeln!(err, "quaymaster: {failure}");
            failure.code
        }
    }
}
