//! Who interrupts whom: a VM's turn on a CPU is its own, and nobody's wake-up is lost for that.

mod fake;

use bulkhead::arch::{Arch as _, CpuId, Entry, Exit, Place, Stop, VcpuId};
use bulkhead_vdev::{Access, Gpa, VcpuSet, Width};
use fake::guests::{Act, Guest, device_alarm, device_rings, does, starts, waits, works};
use fake::rig::{Plan, Rig, milliseconds};
use fake::{LATCH, TICKS_PER_SECOND};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Takes the interrupts that it is told of, and counts them.
fn counts(told: &'static AtomicUsize) -> Guest {
    Box::new(move |turn| {
        told.fetch_add(usize::from(turn.attention), Ordering::SeqCst);
        Exit::Idle.into()
    })
}

fn counter() -> &'static AtomicUsize {
    Box::leak(Box::default())
}

/// Computes for ever, and looks up every two milliseconds.
fn works_long() -> Guest {
    Box::new(|_| Act::Work(milliseconds(2)))
}

/// A VM of two vCPUs, one of them on the CPU of a VM that works.
fn neighbours(keeper: u32) -> Rig {
    let plan = Plan::new(2).vm("calls", &[keeper, 1 - keeper], vec![waits(), waits()]);
    let rig = plan.vm("works", &[1], vec![works()]).boot();
    rig.until(|rig| rig.is_idle(0, 0) && rig.worked(1, 0) > 0);
    rig
}

/// Lets a VM call CPU 1 before each of its steps; the share of the time that VM 1 works there, in percent.
fn share_while(rig: &Rig, call: impl Fn()) -> u64 {
    let (began, before) = (rig.now(), rig.worked(1, 0));
    for _ in 0..1_000 {
        call();
        rig.step(1);
        let passed = rig.now() - began;
        if passed > TICKS_PER_SECOND / 10 {
            return (rig.worked(1, 0) - before) * 100 / passed;
        }
    }
    panic!("VM 1 stands still");
}

fn interrupts(rig: &Rig) -> u32 {
    rig.machine().with(|state| state.cpu(CpuId(1)).kicks + state.cpu(CpuId(1)).nudges)
}

#[test]
fn starting_and_stopping_a_vcpu_for_ever_takes_no_time_from_its_neighbour() {
    let rig = neighbours(0);
    let (vm, arch) = (rig.vm(0), rig.arch(0));
    let share = share_while(&rig, || {
        vm.switch_off(&arch, VcpuSet::only(1));
        let _ = vm.start(&arch, VcpuId(1), Entry::default());
        vm.switch_off(&arch, VcpuSet::only(1));
    });
    assert!(share >= 99, "{share} %");
}

#[test]
fn waking_a_vcpu_that_is_off_takes_no_time_from_its_neighbour() {
    let rig = neighbours(0);
    let (vm, arch) = (rig.vm(0), rig.arch(0));
    let before = interrupts(&rig);
    let share = share_while(&rig, || vm.wake(&arch, VcpuSet::only(1), None));
    assert!(share >= 99, "{share} %");
    assert_eq!(interrupts(&rig), before);
}

#[test]
fn a_vcpu_that_is_not_running_is_not_nudged() {
    let plan = Plan::new(2).vm("calls", &[0, 1], vec![does([starts(1, 0)]), works()]);
    let rig = plan.vm("works", &[1], vec![works()]).boot();
    rig.until(|rig| rig.worked(0, 1) > 0 && rig.worked(1, 0) > 0);
    let (vm, arch) = (rig.vm(0), rig.arch(0));
    for _ in 0..4 {
        let runs = rig.machine().with(|state| state.cpu(CpuId(1)).loaded) == Some((0, 1));
        let before = interrupts(&rig);
        for _ in 0..3 {
            vm.wake(&arch, VcpuSet::only(1), None);
        }
        assert_eq!(interrupts(&rig) - before, if runs { 3 } else { 0 });
        rig.step(1);
    }
}

#[test]
fn setting_an_alarm_for_ever_takes_no_time_from_the_keepers_other_vm() {
    let rig = neighbours(1);
    let (vm, arch) = (rig.vm(0), rig.arch(0));
    let alarm = |at_ns| {
        vm.io(&arch, VcpuId(1), Place::Memory(Gpa(LATCH.0 + 8)), Access::Write(Width::Double, at_ns));
    };
    let share = share_while(&rig, || {
        alarm(u64::MAX - 2);
        alarm(u64::MAX - 3);
    });
    assert!(share >= 99, "{share} %");
}

#[test]
fn a_device_that_rings_without_end_leaves_its_neighbour_in_peace() {
    let plan = Plan::new(1).vm("rings", &[0], vec![does([device_rings(20_000)])]);
    let rig = plan.vm("works", &[0], vec![works()]).boot();
    rig.until(|rig| rig.worked(1, 0) > 0 && rig.is_idle(0, 0));
    let (began, mut decisions) = (rig.now(), 0);
    while rig.now() - began < TICKS_PER_SECOND {
        rig.step(0);
        decisions += 1;
    }
    assert!((1_900..2_500).contains(&decisions), "{decisions} decisions a second");
}

#[test]
fn an_alarm_is_rung_in_time_while_no_other_vm_runs_and_soon_while_one_does() {
    let others: [(fn() -> Guest, u64); 2] = [(waits, 10), (works, 600)];
    for (other, late_us) in others {
        let told = counter();
        let (mut waiter, mut acts) = (counts(told), vec![device_alarm(30_000_000)]);
        let waiter: Guest = Box::new(move |turn| acts.pop().unwrap_or_else(|| waiter(turn)));
        let rig = Plan::new(1).vm("waits", &[0], vec![waiter]).vm("other", &[0], vec![other()]).boot();
        rig.until(|rig| !rig.vm(0).irqs(&rig.arch(0)).high.is_empty());
        let late = rig.now() - milliseconds(30);
        assert!(late <= milliseconds(late_us) / 1_000, "{late} ticks late");
    }
}

#[test]
fn a_call_comes_through_at_once_in_a_turn_that_nobody_disturbed() {
    let told = counter();
    let rig = Plan::new(2).vm("waits", &[1], vec![counts(told)]).vm("works", &[1], vec![works()]).boot();
    rig.until(|rig| rig.is_idle(0, 0) && rig.worked(1, 0) > milliseconds(20));
    rig.wake(0, 0, 0);
    let woken = rig.now();
    rig.until(|_| told.load(Ordering::SeqCst) == 1);
    assert!(rig.now() - woken < milliseconds(1));
}

#[test]
fn no_call_is_lost_at_any_moment_of_a_decision() {
    for calls in 0..40 {
        let told = counter();
        let plan = Plan::new(2).vm("waits", &[1], vec![counts(told)]);
        let plan = plan.vm("works", &[1], vec![works_long()]).vm("other", &[1], vec![waits()]);
        let rig = plan.boot();
        rig.until(|rig| rig.is_idle(0, 0) && rig.is_idle(2, 0) && rig.worked(1, 0) > 0);
        let (vm, other, arch, woken) = (rig.vm(0), rig.vm(2), rig.arch(0), counter());
        rig.machine().intrude(CpuId(1), calls, move || {
            // This may use up what a turn lets through.
            other.stop(&arch, Stop::Reset);
            vm.wake(&arch, VcpuSet::only(0), None);
            woken.store(usize::try_from(arch.now().0).unwrap(), Ordering::SeqCst);
        });
        rig.until(|_| told.load(Ordering::SeqCst) > 0);
        let late = rig.now() - woken.load(Ordering::SeqCst) as u64;
        assert!(late <= milliseconds(8), "call {calls}: it came {late} ticks later");
    }
}

/// Where two threads meet, without sleeping.
#[derive(Default)]
struct Meeting(AtomicUsize);

impl Meeting {
    /// The `count`th time, from 1.
    fn meet(&self, count: usize) {
        self.0.fetch_add(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) < 2 * count {
            std::hint::spin_loop();
            std::thread::yield_now();
        }
    }
}

/// Lets one thread wake VM 0's only vCPU on CPU 0 while another steps that CPU, over and over. After each time `reached` has to
/// bring the CPU to where the guest has been told once more.
fn wakes_and_steps_at_once(rig: &Rig, told: &AtomicUsize, reached: impl Fn()) {
    const ROUNDS: usize = 1_000;
    let mut slept = 0;
    let (vm, arch) = (rig.vm(0), rig.arch(1));
    let [before, after] = [Meeting::default(), Meeting::default()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                before.meet(round);
                (0..round % 50).for_each(|_| std::hint::spin_loop());
                vm.wake(&arch, VcpuSet::only(0), None);
                after.meet(round);
            }
        });
        for round in 1..=ROUNDS {
            before.meet(round);
            rig.step(0);
            rig.step(0);
            after.meet(round);
            reached();
            // Not asserted in here: the other thread would wait for ever.
            slept += usize::from(told.swap(0, Ordering::SeqCst) != 1);
        }
    });
    assert_eq!(slept, 0, "it slept on");
}

#[test]
fn a_cpu_that_falls_asleep_while_it_is_called_never_sleeps_on() {
    let told = counter();
    let rig = Plan::new(1).vm("waits", &[0], vec![counts(told)]).boot();
    rig.settle();
    wakes_and_steps_at_once(&rig, told, || rig.settle());
}

#[test]
fn a_cpu_that_is_called_while_it_gives_another_vm_a_turn_comes_back_when_that_ends() {
    let told = counter();
    let rig = Plan::new(1).vm("waits", &[0], vec![counts(told)]).vm("works", &[0], vec![works_long()]).boot();
    rig.until(|rig| rig.is_idle(0, 0) && rig.worked(1, 0) > 0);
    wakes_and_steps_at_once(&rig, told, || rig.pass(milliseconds(8)));
}
