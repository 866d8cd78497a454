//! What must be undone however this tool ends: at the end of its scope, or by a signal that ends the whole.
//!
//! A signal ends a program without dropping anything: the terminal would stay raw, and some tens of megabytes in the build
//! folder. What nobody can catch (KILL) still leaves them.

use std::sync::Mutex;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// The ways in which users and terminals end a program.
const ENDING: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

static PENDING: Pending = Pending::new();

/// Something to undo; done when this is dropped.
pub(crate) struct Undo(u64);

impl Undo {
    /// Has `action` done once, later.
    pub(crate) fn later(action: impl FnOnce() + Send + 'static) -> Self {
        Self(PENDING.add(Box::new(action)))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        PENDING.undo(self.0);
    }
}

/// From now on a signal ends this tool only after everything has been undone. Who started it may have had some ignored, as
/// nohup does: they stay so.
pub(crate) fn before_signals() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut signals = Signals::new(ENDING.into_iter().filter(|&signal| !is_ignored(&status, signal)))?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            PENDING.undo_all();
            // It ends the process; were it to fail, the next signal would come here again.
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Whether a process ignores a signal, by its status (proc_pid_status(5)): bit 0 stands for signal 1.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

type Action = Box<dyn FnOnce() + Send>;

/// What is to be undone, the latest last, each under a number of its own.
struct Pending(Mutex<(u64, Vec<(u64, Action)>)>);

impl Pending {
    const fn new() -> Self {
        Self(Mutex::new((0, Vec::new())))
    }

    fn add(&self, action: Action) -> u64 {
        let mut pending = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = pending.0;
        pending.0 += 1;
        pending.1.push((number, action));
        number
    }

    fn undo(&self, number: u64) {
        let mut pending = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(at) = pending.1.iter().position(|(own, _)| *own == number) else { return };
        // The lock is held meanwhile: a signal that comes now ends us when it is done.
        (pending.1.remove(at).1)();
    }

    fn undo_all(&self) {
        let mut pending = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (_, action) in pending.1.drain(..).rev() {
            action();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A list of its own, and what has been undone of it.
    fn pending() -> (Pending, Arc<Mutex<Vec<u64>>>) {
        let (pending, done) = (Pending::new(), Arc::new(Mutex::new(Vec::new())));
        for number in 0..3 {
            let done = Arc::clone(&done);
            pending.add(Box::new(move || done.lock().unwrap().push(number)));
        }
        (pending, done)
    }

    #[test]
    fn what_was_undone_in_its_scope_is_not_undone_again() {
        let (pending, done) = pending();
        pending.undo(1);
        pending.undo(1);
        assert_eq!(*done.lock().unwrap(), [1]);
        pending.undo_all();
        pending.undo(0);
        assert_eq!(*done.lock().unwrap(), [1, 2, 0]);
    }

    #[test]
    fn the_end_of_a_scope_undoes() {
        let done = Arc::new(Mutex::new(0));
        let undo = Undo::later({
            let done = Arc::clone(&done);
            move || *done.lock().unwrap() += 1
        });
        assert_eq!(*done.lock().unwrap(), 0);
        drop(undo);
        assert_eq!(*done.lock().unwrap(), 1);
    }

    #[test]
    fn a_signal_that_was_ignored_is_known_by_its_bit() {
        let status = "Name:\txtask\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, SIGHUP));
        assert!(!is_ignored(status, SIGINT) && !is_ignored("", SIGHUP));
    }
}
