//! The loop that each physical CPU runs: pick a vCPU, run it, serve its exit, repeat.
//!
//! One loop and one stack per CPU, no host threads. A vCPU belongs to one physical CPU for good, so its registers are
//! touched by nobody else and need no lock.

use crate::arch::{Arch, CpuId, Entry, Exit, Fault, Stop, Ticks, VcpuId};
use crate::boot::Hypervisor;
use crate::hypercall;
use crate::sched::MAX_SHARED;
use crate::sched::round_robin::RoundRobin;
use crate::turn::{Calls, Missed, Turn};
use crate::vm::{Answer, Phase, Vm};
use alloc::vec::Vec;
use bulkhead_vdev::VcpuSet;
use core::cell::Cell;
use core::fmt;

/// Turns per second where vCPUs share a CPU.
const TURNS_PER_SECOND: u64 = 200;
/// How often a CPU looks whether its vCPU is stuck, while nothing else calls it, per second.
const CHECKS_PER_SECOND: u64 = 2;
/// How often alarms of a VM's devices interrupt another VM's turn at most, per second.
const RINGS_PER_SECOND: u64 = 2000;

/// One vCPU and its registers, on its physical CPU.
struct Runner<A: Arch> {
    vm: &'static Vm<A>,
    id: VcpuId,
    registers: A::Vcpu,
    /// It was started and has not stopped since. Other CPUs switch a vCPU on at any time; it runs only once `registers`
    /// hold what it was started with.
    started: bool,
    /// The stops of the VM that this vCPU has parked for.
    parked: u32,
    /// It was found stuck at the last check.
    stuck: bool,
    /// When it is checked next.
    next_check: Ticks,
}

/// A physical CPU at work.
pub struct Cpu<A: Arch> {
    arch: A,
    id: CpuId,
    hypervisor: &'static Hypervisor<A>,
    runners: Vec<Runner<A>>,
    loaded: Option<usize>,
    policy: RoundRobin,
    turn: &'static Turn,
    /// Several VMs share this CPU.
    is_shared: bool,
    /// When the last turn that was given ends.
    turn_ends: Ticks,
    /// The CPU was called in this turn: no other VM may do so again.
    called: bool,
    /// The VM for which this CPU works now: to be blamed if it panics.
    serving: Cell<Option<usize>>,
}

impl<A: Arch> Cpu<A> {
    /// CPU `id` with registers for all its vCPUs. Allocates: boot only.
    #[inline(never)]
    pub fn new(arch: A, id: CpuId, hypervisor: &'static Hypervisor<A>) -> Self {
        let mine = || {
            hypervisor.vms.iter().flat_map(move |vm| {
                vm.cpus()
                    .enumerate()
                    .filter(move |(_, cpu)| *cpu == id)
                    .map(move |(vcpu, _)| (vm, VcpuId(vcpu)))
            })
        };
        let shared = mine().count() > 1;
        let is_shared = mine().any(|(vm, _)| mine().any(|(other, _)| other.index != vm.index));
        let runners = mine()
            .take(MAX_SHARED)
            .map(|(vm, vcpu)| Runner {
                vm,
                id: vcpu,
                registers: arch.vcpu(vm, vcpu, shared),
                started: false,
                parked: 0,
                stuck: false,
                next_check: Ticks(0),
            })
            .collect();
        let policy = RoundRobin::new(arch.ticks_per_second() / TURNS_PER_SECOND);
        Self {
            arch,
            id,
            hypervisor,
            runners,
            loaded: None,
            policy,
            turn: hypervisor.turn(id),
            is_shared,
            turn_ends: Ticks(0),
            called: false,
            serving: Cell::new(None),
        }
    }

    /// The physical CPU.
    pub fn arch(&self) -> &A {
        &self.arch
    }

    /// Runs for ever.
    pub fn run(&mut self) -> ! {
        loop {
            self.step();
        }
    }

    /// After a panic on this CPU, whose message is `why` unless it was reported already: the VM in whose service it came
    /// ends at once, and nothing of it is touched any more, because its locks may be held and its state half changed. The
    /// others go on. `false`: it came in nobody's service, or what all share is no longer sound.
    #[cold]
    #[inline(never)]
    pub fn recover(&mut self, why: Option<&str>) -> bool {
        let culprit = self.serving.take().and_then(|vm| self.hypervisor.vms.get(vm));
        let Some(vm) = culprit else { return false };
        if !self.hypervisor.console.is_sound() {
            return false;
        }
        vm.condemn(&self.arch);
        if let Some(why) = why {
            log::error!("bulkhead: {why}");
            log::error!("{}: ended, because the hypervisor failed in its service", vm.config.name);
        }
        if let Some(index) = self.loaded
            && self.runners[index].vm.index == vm.index
        {
            self.loaded = None;
            self.arch.abandon(&mut self.runners[index].registers);
        }
        self.end_with_the_last();
        true
    }

    /// From now on this CPU works for `vm`.
    fn serve(&self, vm: &Vm<A>) {
        self.serving.set(Some(vm.index));
    }

    /// A machine without a VM is of no use.
    fn end_with_the_last(&self) {
        if self.hypervisor.vms.iter().all(|vm| vm.phase() == Phase::Ended) {
            log::info!("all VMs have ended: the machine is switched off");
            self.arch.power_off();
        }
    }

    /// One decision and what comes of it.
    pub fn step(&mut self) {
        self.serving.set(None);
        // What others change from here on is seen, or missed by `give` and `rest`.
        let was_called = self.turn.decide();
        self.called |= was_called && self.is_shared;
        self.serve_console();
        let began = self.arch.now();
        let busy = self.serve_lives();
        self.check_progress(began);
        self.unload_waiting();
        let (ready, until) = self.readiness();
        let now = self.arch.now();
        self.serving.set(None);
        let Some(decision) = self.policy.next(now, ready) else {
            self.unload();
            self.serving.set(None);
            if !busy && self.turn.rest() == Missed::Nothing {
                self.arch.wake_at(earliest(until, self.next_alarm(None)));
                self.arch.idle();
            }
            return;
        };
        let next = decision.run;
        if self.give_turn(next, decision.ends) == Missed::Something && !busy {
            return;
        }
        let turn_ends = if self.called { Some(decision.ends) } else { decision.until };
        let until = earliest(until, turn_ends);
        let until = earliest(until, self.next_alarm(Some((next, now))));
        // Who shares the CPU with a VM that is being loaded gets as much time as the loading takes.
        let call = if busy {
            now.0.saturating_add(now.0.saturating_sub(began.0))
        } else {
            self.next_check(next, now)
        };
        self.arch.wake_at(earliest(until, Some(Ticks(call))));
        self.load(next);
        self.serve_exits(next);
    }

    /// Others hear whose turn it is. Returns whether the decision has to be made again, because of a call that came too late
    /// for it: like any other call, another VM gets that once in a turn.
    fn give_turn(&mut self, next: usize, ends: Ticks) -> Missed {
        if self.turn_ends != ends {
            self.turn_ends = ends;
            self.called = false;
        }
        let calls = if self.called { Calls::Deferred } else { Calls::Open };
        let missed = self.turn.give(self.runners[next].vm.whose, calls);
        if self.called {
            return Missed::Nothing;
        }
        self.called = missed == Missed::Something && self.is_shared;
        missed
    }

    /// The UART interrupts the CPU that came up first.
    fn serve_console(&self) {
        if self.id != CpuId(0) {
            return;
        }
        let vms = &self.hypervisor.vms;
        // Each is told once at most in a turn of the loop.
        for _ in vms {
            let Some(vm) = self.hypervisor.console.service().and_then(|vm| vms.get(vm)) else { break };
            self.serve(vm);
            vm.notify(&self.arch);
            self.serving.set(None);
        }
    }

    /// Loads, starts and parks vCPUs as their VMs' lives ask for. Returns whether there is more of that to do.
    #[inline(never)]
    fn serve_lives(&mut self) -> bool {
        let mut busy = false;
        for index in 0..self.runners.len() {
            let runner = &self.runners[index];
            self.serve(runner.vm);
            match runner.vm.phase() {
                Phase::Loading if runner.id == VcpuId(0) => {
                    busy = true;
                    runner.vm.load_step(&self.arch);
                }
                Phase::Running => {
                    if let Some(entry) = runner.vm.take_entry(&self.arch, runner.id) {
                        self.unload_if(index);
                        let runner = &mut self.runners[index];
                        self.arch.reset(&mut runner.registers, entry);
                        runner.started = true;
                        runner.stuck = false;
                    } else if runner.started && runner.vm.is_on(runner.id) == Some(false) {
                        self.went_off(index);
                    }
                }
                Phase::Stopping if runner.parked != runner.vm.stops() => self.park(index),
                Phase::Loading | Phase::Stopping | Phase::Ended => {}
            }
        }
        busy
    }

    fn park(&mut self, index: usize) {
        self.unload_if(index);
        let runner = &mut self.runners[index];
        runner.started = false;
        runner.parked = runner.vm.stops();
        if runner.vm.park(&self.arch) {
            log::info!("{}: ended", runner.vm.config.name);
            self.end_with_the_last();
        }
    }

    /// Which vCPUs can run (bit = place in the list), and when the next of the others wants to.
    fn readiness(&self) -> (u64, Option<Ticks>) {
        let now = self.arch.now();
        let mut ready = 0;
        let mut until = None;
        for (index, runner) in self.runners.iter().enumerate() {
            if runner.vm.phase() != Phase::Running {
                continue;
            }
            self.serve(runner.vm);
            if runner.vm.keeper() == Some(self.id) && runner.id == VcpuId(0) {
                runner.vm.ring_alarms(&self.arch);
            }
            if !runner.started {
                continue;
            }
            let alarm = if self.loaded == Some(index) { None } else { self.arch.alarm(&runner.registers) };
            if runner.vm.is_idle(runner.id) {
                if alarm.is_none_or(|at| at > now) {
                    until = earliest(until, alarm);
                    continue;
                }
                runner.vm.stop_waiting(runner.id);
            }
            ready |= 1 << index;
        }
        (ready, until)
    }

    /// When the next device of a VM wants to be called that this CPU keeps. While another VM runs, which is `next` from `now`
    /// on, it may have to wait a little.
    fn next_alarm(&self, next: Option<(usize, Ticks)>) -> Option<Ticks> {
        let gap = self.arch.ticks_per_second() / RINGS_PER_SECOND;
        let mut first = None;
        for runner in self.runners.iter().filter(|runner| runner.id == VcpuId(0)) {
            if runner.vm.phase() != Phase::Running {
                continue;
            }
            let other = next.filter(|(run, _)| self.runners[*run].vm.index != runner.vm.index);
            let soonest = other.map_or(Ticks(0), |(_, now)| Ticks(now.0.saturating_add(gap)));
            first = earliest(first, runner.vm.next_alarm(&self.arch).map(|at| at.max(soonest)));
        }
        first
    }

    /// A guest that faults on its own fault handler would loop for ever unseen: twice found so, it is ended. Whoever ran
    /// last is looked at, so that sharing the CPU hides nobody.
    fn check_progress(&mut self, now: Ticks) {
        let Some(index) = self.loaded else { return };
        if now < self.runners[index].next_check {
            return;
        }
        self.runners[index].next_check = Ticks(now.0.saturating_add(self.check_period()));
        self.serve(self.runners[index].vm);
        let stuck = self.arch.is_stuck(&self.runners[index].registers);
        let before = core::mem::replace(&mut self.runners[index].stuck, stuck);
        if stuck && before {
            let cause = "its exception vector cannot be executed, so it faults for ever";
            self.end(index, Stop::Fault(Fault { cause, at: None }));
        }
    }

    /// When the vCPU about to run shall come back to be checked.
    fn next_check(&self, next: usize, now: Ticks) -> u64 {
        let due = self.runners[next].next_check;
        if due > now { due.0 } else { now.0.saturating_add(self.check_period()) }
    }

    fn check_period(&self) -> u64 {
        self.arch.ticks_per_second() / CHECKS_PER_SECOND
    }

    fn load(&mut self, next: usize) {
        if self.loaded == Some(next) {
            self.serve(self.runners[next].vm);
            return;
        }
        self.unload();
        self.serve(self.runners[next].vm);
        // From here on it is abandoned after a panic: the CPU may hold half of it.
        self.loaded = Some(next);
        let runner = &mut self.runners[next];
        self.arch.load(&mut runner.registers, runner.vm);
    }

    fn unload(&mut self) {
        let Some(old) = self.loaded else { return };
        self.serve(self.runners[old].vm);
        let runner = &mut self.runners[old];
        if runner.vm.phase() == Phase::Ended {
            self.arch.abandon(&mut runner.registers);
        } else {
            self.arch.unload(&mut runner.registers, runner.vm);
        }
        self.loaded = None;
    }

    /// A vCPU that waits leaves the CPU: from then on its timers are an alarm of ours.
    fn unload_waiting(&mut self) {
        let waits = self
            .loaded
            .and_then(|index| self.runners.get(index))
            .is_some_and(|runner| runner.vm.is_idle(runner.id));
        if waits {
            self.unload();
        }
    }

    fn unload_if(&mut self, index: usize) {
        if self.loaded == Some(index) {
            self.unload();
        }
    }

    /// Runs one vCPU until something else has to be decided.
    #[inline(never)]
    fn serve_exits(&mut self, index: usize) {
        let Self { arch, runners, .. } = self;
        let Some(Runner { vm, id, registers, .. }) = runners.get_mut(index) else { return };
        let stop = loop {
            match arch.run(registers, vm) {
                Exit::Io(place, access) => match vm.io(arch, *id, place, access) {
                    Answer::Value(value) => arch.complete(registers, value),
                    Answer::PowerOff => break Stop::PowerOff,
                    Answer::Reset => break Stop::Reset,
                    Answer::Nobody => match vm.nowhere(arch, place, access) {
                        Ok(()) => arch.refuse(registers),
                        Err(fault) => break Stop::Fault(fault),
                    },
                },
                Exit::Start(set, entry) => start(arch, vm, registers, set, entry),
                Exit::SwitchOff(set) => vm.switch_off(arch, set),
                Exit::Hypercall(number, arguments) => {
                    arch.reply(registers, hypercall::call(arch, vm, number, arguments));
                }
                Exit::Idle => {
                    if vm.go_idle(*id) {
                        return;
                    }
                }
                Exit::Preempted => return,
                Exit::Stopped(stop) => break stop,
            }
        };
        self.end(index, stop);
    }

    /// A vCPU does not go on; nor does its VM, unless it was only that vCPU's own wish.
    #[cold]
    #[inline(never)]
    fn end(&mut self, index: usize, stop: Stop) {
        let runner = &self.runners[index];
        let vm = runner.vm;
        let name = &vm.config.name;
        match stop {
            Stop::CpuOff => {
                vm.switched_off(runner.id);
                self.went_off(index);
            }
            Stop::PowerOff => {
                log::info!("{name}: power off");
                vm.stop(&self.arch, stop);
            }
            Stop::Reset => {
                if vm.may_log(&self.arch, 1) {
                    log::info!("{name}: reset");
                }
                vm.stop(&self.arch, stop);
            }
            Stop::Fault(fault) => {
                if vm.stop(&self.arch, stop) && vm.may_log(&self.arch, REPORT_LINES) {
                    self.report(index, fault);
                }
            }
        }
    }

    /// A vCPU was switched off, by itself or by another; a VM of which none is left has ended.
    #[cold]
    fn went_off(&mut self, index: usize) {
        self.unload_if(index);
        let runner = &mut self.runners[index];
        runner.started = false;
        if runner.vm.is_all_off() {
            log::info!("{}: all its CPUs are off", runner.vm.config.name);
            runner.vm.stop(&self.arch, Stop::PowerOff);
        }
    }

    /// One screen on what a guest did.
    #[cold]
    #[inline(never)]
    fn report(&self, index: usize, fault: Fault) {
        let runner = &self.runners[index];
        log::error!("{}: stopped, because {fault}", runner.vm.config.name);
        log::error!("  vCPU {} on CPU {}", runner.id.0, self.id.0);
        match runner.vm.nowhere_count() {
            0 => {}
            count => log::error!("  before that, {count} accesses to places where nothing is"),
        }
        if self.loaded == Some(index) {
            // The log takes every line; it has nothing to fail with.
            let _ = self.arch.describe(&runner.registers, &mut ReportLines::default());
        }
    }
}

/// Starts others of the VM's vCPUs.
#[inline(never)]
fn start<A: Arch>(arch: &A, vm: &Vm<A>, registers: &mut A::Vcpu, set: VcpuSet, entry: Entry) {
    for target in set.iter() {
        arch.started(registers, vm.start(arch, VcpuId(target), entry));
    }
}

/// Lines of a report, or a few more.
const REPORT_LINES: u64 = 20;
/// Longest line of a report.
const REPORT_LINE: usize = 120;

/// Writes whole lines to the log.
#[derive(Default)]
struct ReportLines(heapless::String<REPORT_LINE>);

impl fmt::Write for ReportLines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if letter == '\n' {
                log::error!("  {}", self.0);
                self.0.clear();
            } else {
                // What is longer than a line is cut.
                let _ = self.0.push(letter);
            }
        }
        Ok(())
    }
}

fn earliest(one: Option<Ticks>, other: Option<Ticks>) -> Option<Ticks> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
