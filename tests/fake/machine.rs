//! The fake machine: its clock, what its CPUs were told, and what its guests got for answers.

use super::Fake;
use super::guests::Guest;
use bulkhead::arch::{CpuId, CpuMain, Entry, StartError, Ticks, Unsupported};
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A machine. It is leaked: the core keeps what it is given for ever.
pub(crate) struct Machine {
    state: Mutex<State>,
    changed: Condvar,
    pub(crate) address_bits: u32,
    /// Its CPUs are threads that really sleep, not objects that are stepped.
    pub(crate) threads: bool,
    /// The CPU that cannot be started.
    pub(crate) broken_cpu: Option<CpuId>,
}

thread_local! {
    /// A device model is at work on this thread.
    pub(crate) static IN_DEVICE: Cell<bool> = const { Cell::new(false) };
}

/// What an exit was answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Value(u64),
    Refused,
    Result(u64),
    Started(Result<(), StartError>),
}

/// What is unwound with when the machine is switched off.
pub(crate) struct PoweredOff;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) now: u64,
    pub(crate) off: bool,
    pub(crate) ticks_per_copied_page: u64,
    pub(crate) ticks_per_exit: u64,
    cpus: HashMap<u32, CpuState>,
    guests: HashMap<(usize, usize), GuestState>,
    intruder: Option<Intruder>,
    started: Vec<(CpuId, JoinHandle<()>)>,
}

#[derive(Default)]
pub(crate) struct CpuState {
    pub(crate) kicked: bool,
    pub(crate) kicks: u32,
    pub(crate) nudges: u32,
    pub(crate) deadline: Option<Ticks>,
    pub(crate) asleep: bool,
    pub(crate) loaded: Option<(usize, usize)>,
}

#[derive(Default)]
pub(crate) struct GuestState {
    pub(crate) program: Option<Guest>,
    pub(crate) shared: bool,
    pub(crate) replies: Vec<Reply>,
    pub(crate) entries: Vec<Entry>,
    /// Ticks that it computed.
    pub(crate) worked: u64,
    pub(crate) faults: u32,
    pub(crate) stuck: bool,
}

/// What happens on other CPUs at one moment in the middle of a CPU's step.
struct Intruder {
    cpu: CpuId,
    calls_left: usize,
    does: Box<dyn FnOnce() + Send>,
}

impl State {
    pub(crate) fn cpu(&mut self, cpu: CpuId) -> &mut CpuState {
        self.cpus.entry(cpu.0).or_default()
    }

    pub(crate) fn guest(&mut self, who: (usize, usize)) -> &mut GuestState {
        self.guests.entry(who).or_default()
    }
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            address_bits: 40,
            threads: false,
            broken_cpu: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A failed assertion elsewhere is reported there, not again here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the machine. Not to be nested.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.lock())
    }

    /// Lets `does` happen at the moment of CPU `cpu`'s call number `calls` (from 0) across the seam.
    pub(crate) fn intrude(&self, cpu: CpuId, calls: usize, does: impl FnOnce() + Send + 'static) {
        self.with(|state| state.intruder = Some(Intruder { cpu, calls_left: calls, does: Box::new(does) }));
    }

    /// Whether what [`Machine::intrude`] announced has happened. If not, it will not happen any more.
    pub(crate) fn intruded(&self) -> bool {
        self.with(|state| state.intruder.take().is_none())
    }

    /// CPU `cpu` calls something of the seam.
    pub(crate) fn called(&self, cpu: CpuId) {
        // Whoever came now would wait for the device's lock, and wait for ever, as it is this very thread.
        if IN_DEVICE.get() {
            return;
        }
        let due = self.with(|state| {
            let intruder = state.intruder.as_mut().filter(|intruder| intruder.cpu == cpu)?;
            if intruder.calls_left > 0 {
                intruder.calls_left -= 1;
                return None;
            }
            state.intruder.take()
        });
        if let Some(intruder) = due {
            (intruder.does)();
        }
    }

    /// Whether a CPU that sleeps would be woken by now; then it is awake.
    pub(crate) fn wakes(&self, cpu: CpuId) -> bool {
        self.with(|state| {
            let now = state.now;
            let cpu = state.cpu(cpu);
            if cpu.asleep && !cpu.kicked && cpu.deadline.is_none_or(|at| at.0 > now) {
                return false;
            }
            if std::mem::take(&mut cpu.asleep) {
                cpu.kicked = false;
            }
            true
        })
    }

    pub(crate) fn idle(&self, cpu: CpuId) {
        self.with(|state| state.cpu(cpu).asleep = true);
        while self.threads && !self.wakes(cpu) {
            let mut state = self.lock();
            if state.off {
                drop(state);
                resume_unwind(Box::new(PoweredOff));
            }
            if let Some(at) = state.cpu(cpu).deadline {
                // Nothing is worth waiting for in a fake: the moment comes at once.
                state.now = state.now.max(at.0);
                self.changed.notify_all();
            } else if !state.cpu(cpu).kicked {
                drop(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    pub(crate) fn wake_sleepers(&self) {
        if self.threads {
            self.changed.notify_all();
        }
    }

    pub(crate) fn power_off(&self) -> ! {
        self.with(|state| state.off = true);
        self.changed.notify_all();
        resume_unwind(Box::new(PoweredOff));
    }

    pub(crate) fn start_cpu(
        &'static self,
        cpu: CpuId,
        main: &'static CpuMain<Fake>,
    ) -> Result<(), Unsupported> {
        if self.broken_cpu == Some(cpu) {
            return Err(Unsupported("this CPU is broken"));
        }
        let run = move || {
            let end = catch_unwind(AssertUnwindSafe(|| main(Fake { machine: self, cpu }, cpu)));
            if let Err(reason) = end
                && !reason.is::<PoweredOff>()
            {
                self.with(|state| state.off = true);
                self.changed.notify_all();
                resume_unwind(reason);
            }
        };
        self.with(|state| state.started.push((cpu, std::thread::spawn(run))));
        Ok(())
    }

    /// Waits until all threads have ended; returns how many there were.
    pub(crate) fn join(&self) -> usize {
        let started = self.with(|state| std::mem::take(&mut state.started));
        let count = started.len();
        for (cpu, thread) in started {
            assert!(thread.join().is_ok(), "CPU {} panicked", cpu.0);
        }
        count
    }
}
