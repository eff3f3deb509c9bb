//! Evaluation in a process of its own: the side that evaluates.
//!
//! Standard input is the definitions directory, standard output the pipe for the answer, the order
//! is on the command line. It reads nothing else and has no environment.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::exit;
use std::sync::Arc;

use crate::confine;
use crate::definitions::Definitions;
use crate::error::EvalError;
use crate::evaluate::{evaluate_here, list_here, on_large_stack};
use crate::process::Limits;
use crate::wire::{self, Answer};

/// The argument by which srp becomes an evaluating process.
pub(crate) const ARGUMENT: &str = "__evaluate";

/// What an evaluating process has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) limits: Limits,
    /// Whether it says before each statement where it is.
    pub(crate) positions: bool,
    pub(crate) build_arch: String,
    pub(crate) task: Task,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Evaluate { attrs: Vec<String> },
    List { within: Option<String> },
}

impl Order {
    pub(crate) fn to_arguments(&self) -> Vec<String> {
        let Limits { memory_mib, cpu_seconds, seconds } = self.limits;
        let mut arguments = vec![
            memory_mib.to_string(),
            cpu_seconds.to_string(),
            seconds.to_string(),
            if self.positions { "positions" } else { "answer" }.to_owned(),
            self.build_arch.clone(),
        ];
        match &self.task {
            Task::Evaluate { attrs } => {
                arguments.push("evaluate".to_owned());
                arguments.extend(attrs.iter().cloned());
            }
            Task::List { within } => {
                arguments.push("list".to_owned());
                arguments.extend(within.iter().cloned());
            }
        }
        arguments
    }

    fn of_arguments(arguments: &[String]) -> Option<Order> {
        let [memory_mib, cpu_seconds, seconds, mode, build_arch, task, rest @ ..] = arguments
        else {
            return None;
        };
        let limits = Limits {
            memory_mib: memory_mib.parse().ok()?,
            cpu_seconds: cpu_seconds.parse().ok()?,
            seconds: seconds.parse().ok()?,
        };
        let task = match (task.as_str(), rest) {
            ("evaluate", attrs) => Task::Evaluate { attrs: attrs.to_vec() },
            ("list", []) => Task::List { within: None },
            ("list", [within]) => Task::List { within: Some(within.clone()) },
            _ => return None,
        };
        let positions = mode == "positions";
        Some(Order { limits, positions, build_arch: build_arch.clone(), task })
    }
}

/// Where the answer goes.
#[derive(Clone, Debug)]
struct Pipe(Arc<File>);

impl Pipe {
    fn send(&self, tag: u8, body: &[u8]) {
        // Nobody reads it any more: there is nothing left to do.
        if wire::send(&*self.0, tag, body).is_err() {
            exit(1);
        }
    }
}

/// The evaluating process's whole life: what `srp __evaluate` is. It is started by
/// [`Evaluator`](crate::Evaluator) and by nobody else.
pub fn worker_main() -> ! {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let Some(order) = Order::of_arguments(&arguments) else {
        eprintln!("srp {ARGUMENT} is how srp evaluates definitions: it isn't for people");
        exit(2);
    };
    match prepare(&order) {
        Ok((definitions, pipe)) => work(&order, &definitions, &pipe),
        Err(error) => eprintln!("can't prepare the evaluation: {error}"),
    }
    exit(0)
}

/// Gives up everything but the definitions and the pipe.
fn prepare(order: &Order) -> io::Result<(Definitions, Pipe)> {
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    let directory: OwnedFd = duplicate(io::stdin().as_fd())?;
    let mut pipe = File::from(duplicate(io::stdout().as_fd())?);
    confine::limit(&order.limits)?;
    if let Err(error) = confine::read_only(&directory) {
        return Err(io::Error::other(error));
    }
    // What a panic says is in the answer.
    std::panic::set_hook(Box::new(|_| ()));
    pipe.write_all(wire::MAGIC)?;
    let pipe = Pipe(Arc::new(pipe));
    let (printed, at, position) = (pipe.clone(), pipe.clone(), pipe.clone());
    let mut definitions = Definitions::of_directory(File::from(directory))
        .on_print(move |text| printed.send(wire::PRINTED, text.as_bytes()))
        .on_step(move |what| at.send(wire::AT, what.as_bytes()));
    if order.positions {
        definitions =
            definitions.on_position(move |place| position.send(wire::POSITION, place.as_bytes()));
    }
    Ok((definitions, pipe))
}

fn work(order: &Order, definitions: &Definitions, pipe: &Pipe) {
    let arch = &order.build_arch;
    match &order.task {
        Task::Evaluate { attrs } => {
            answer(pipe, || evaluate_here(definitions, arch, attrs));
        }
        Task::List { within } => {
            answer(pipe, || list_here(definitions, arch, within.as_deref()));
        }
    }
}

fn answer<T: Answer + Send>(pipe: &Pipe, work: impl FnOnce() -> Result<T, EvalError> + Send) {
    let result = on_large_stack(|| {
        // From here on there is no new thread.
        if let Err(error) = confine::filter_calls() {
            tracing::debug!(%error, "there is no filter of system calls");
        }
        work()
    });
    pipe.send(wire::DONE, &wire::encode_result(&result));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let tasks = [
            Task::Evaluate { attrs: vec![] },
            Task::Evaluate { attrs: vec!["s.t".to_owned(), "--help".to_owned()] },
            Task::List { within: None },
            Task::List { within: Some("s".to_owned()) },
        ];
        for task in tasks {
            let order = Order {
                limits: Limits::default(),
                positions: matches!(task, Task::List { .. }),
                build_arch: "x86_64".to_owned(),
                task,
            };
            assert_eq!(Order::of_arguments(&order.to_arguments()), Some(order));
        }
        assert_eq!(Order::of_arguments(&[]), None);
    }
}
