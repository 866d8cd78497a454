//! What the core makes of the exits of one VM's vCPUs: accesses, starts, waiting, turns on a shared CPU.

mod fake;

use bulkhead::arch::{CpuId, Exit, Place, StartError, Stop, Ticks, VcpuId};
use bulkhead::vm::Phase;
use bulkhead_vdev::{Access, Gpa, VcpuSet, Width, virt};
use fake::guests::{
    Act, Guest, device_alarm, does, port, prints, read, starts, stops, switches_off, waits, wire, wishes,
    works, write,
};
use fake::machine::Reply;
use fake::rig::{Plan, Rig, logged_with, milliseconds};
use fake::{LATCH, LATCH_PORT, TICKS_PER_SECOND};
use std::sync::atomic::{AtomicUsize, Ordering};

/// One VM whose vCPUs have a CPU each.
fn spread(guests: Vec<Guest>) -> Rig {
    let cpus: Vec<u32> = (0..u32::try_from(guests.len()).unwrap()).collect();
    Plan::new(u32::try_from(cpus.len()).unwrap()).vm("vm", &cpus, guests).boot()
}

fn alone(acts: Vec<Act>) -> Rig {
    let rig = spread(vec![does(acts)]);
    rig.settle();
    rig
}

/// Starts vCPU 1, then does `acts`.
fn starts_another(acts: Vec<Act>) -> Guest {
    does([starts(1, 0x4000_1000)].into_iter().chain(acts))
}

#[test]
fn a_byte_stored_to_the_uart_reaches_the_wire_in_the_vms_frame() {
    let rig = alone(prints("hi\r\n"));
    assert_eq!(rig.handed.screen.text(), "\x1e[vm] \x1fhi\r\n");
    assert_eq!(rig.replies(0, 0), vec![Reply::Value(0); 4]);
}

#[test]
fn a_load_gets_what_the_device_holds() {
    assert_eq!(alone(vec![wire(5), read(LATCH)]).replies(0, 0), [Reply::Value(5), Reply::Value(5)]);
}

#[test]
fn an_access_to_nothing_is_refused_counted_and_logged_once() {
    let rig = alone(vec![read(Gpa(0x1000)), read(Gpa(0x1000)), write(Gpa(0x2000), 1)]);
    assert_eq!(rig.replies(0, 0), [Reply::Refused; 3]);
    assert_eq!(rig.vm(0).nowhere_count(), 3);
    assert_eq!(logged_with("where nothing is"), 2);
}

#[test]
fn a_device_answers_at_ports_and_in_several_windows() {
    let byte = |value| Access::Write(Width::Byte, value);
    let rig = alone(vec![
        port(byte(3), LATCH_PORT),
        port(Access::Read(Width::Byte), LATCH_PORT + 0x100),
        read(LATCH),
        port(Access::Read(Width::Byte), LATCH_PORT + 8),
        port(Access::Read(Width::Word), u16::MAX),
    ]);
    let level = Reply::Value(3);
    assert_eq!(rig.replies(0, 0), [level, level, level, Reply::Refused, Reply::Refused]);
}

#[test]
fn a_device_can_switch_its_machine_off_or_restart_it() {
    let rig = alone(vec![wishes(2), wishes(1)]);
    assert_eq!(rig.boots(0, 0), 2);
    assert_eq!(rig.phases(), [Phase::Ended]);
    assert!(rig.is_off());
}

#[test]
fn an_access_that_leaves_its_device_is_refused() {
    assert_eq!(alone(vec![write(Gpa(LATCH.0 + 0xffe), 1)]).replies(0, 0), [Reply::Refused]);
}

#[test]
fn a_call_without_a_number_is_answered_with_an_error() {
    let rig = alone(vec![Exit::Hypercall(1, [0; 4]).into()]);
    assert_eq!(rig.replies(0, 0), [Reply::Result(u64::MAX)]);
}

#[test]
fn a_vcpu_is_started_once_with_its_entry() {
    let rig = spread(vec![starts_another(vec![starts(1, 0), starts(0, 0), starts(2, 0)]), waits()]);
    rig.settle();
    let started =
        [Ok(()), Err(StartError::AlreadyOn), Err(StartError::AlreadyOn), Err(StartError::NoSuchVcpu)];
    assert_eq!(rig.replies(0, 0), started.map(Reply::Started));
    let entry = rig.machine().with(|state| state.guest((0, 1)).entries[0]);
    assert_eq!((entry.pc, entry.arguments[0]), (Gpa(0x4000_1000), 7));
}

#[test]
fn a_vcpu_that_went_off_can_be_started_again() {
    let pause = (0..5).map(|_| Exit::Preempted.into());
    let first = starts_another(pause.chain([starts(1, 0x4000_2000)]).collect());
    let rig = spread(vec![first, does([stops(Stop::CpuOff)])]);
    rig.settle();
    assert_eq!(rig.replies(0, 0), [Reply::Started(Ok(())); 2]);
    assert_eq!(rig.boots(0, 1), 2);
}

#[test]
fn a_start_at_any_moment_never_runs_the_registers_from_before() {
    for calls in 0..40 {
        let rig = spread(vec![starts_another(vec![]), does([stops(Stop::CpuOff), stops(Stop::CpuOff)])]);
        let (vm, arch) = (rig.vm(0), rig.arch(0));
        // The fake checks that what went off runs only after a reset.
        rig.machine().intrude(CpuId(1), calls, move || {
            let _ = vm.start(&arch, VcpuId(1), bulkhead::arch::Entry::default());
        });
        rig.settle();
        assert_eq!(vm.is_on(VcpuId(1)), Some(false));
    }
}

#[test]
fn vcpus_that_another_switches_off_stop_wherever_they_are_and_start_again() {
    let pause = || (0..5).map(|_| Exit::Preempted.into());
    let acts = pause().chain([switches_off(&[1, 7])]).chain(pause()).chain([starts(1, 0x4000_2000)]);
    let rig = spread(vec![starts_another(acts.collect()), works()]);
    rig.until(|rig| rig.boots(0, 1) == 2);
    assert_eq!(rig.vm(0).is_on(VcpuId(1)), Some(true));
}

#[test]
fn switching_a_vcpu_off_again_and_again_does_not_disturb_its_cpu() {
    let rig = spread(vec![starts_another(vec![]), waits()]);
    rig.settle();
    let (vm, arch) = (rig.vm(0), rig.arch(0));
    let kicks = || rig.machine().with(|state| state.cpu(CpuId(1)).kicks);
    let before = kicks();
    vm.switch_off(&arch, VcpuSet::only(1));
    assert_eq!((vm.is_on(VcpuId(1)), kicks()), (Some(false), before + 1));
    vm.switch_off(&arch, VcpuSet::only(1));
    assert_eq!(kicks(), before + 1);
}

#[test]
fn a_vcpu_started_before_it_noticed_that_it_is_off_is_as_after_a_start() {
    let acts = (0..5).map(|_| Exit::Preempted.into()).chain([switches_off(&[1]), starts(1, 0x4000_2000)]);
    let rig = spread(vec![starts_another(acts.collect()), works()]);
    rig.until(|rig| rig.boots(0, 1) == 2);
}

#[test]
fn a_vm_that_switches_all_its_cpus_off_ends() {
    let rig = alone(vec![switches_off(&[0])]);
    assert_eq!(rig.phases(), [Phase::Ended]);
}

#[test]
fn a_vm_whose_cpus_are_all_off_ends() {
    let rig = spread(vec![starts_another(vec![stops(Stop::CpuOff)]), does([stops(Stop::CpuOff)])]);
    rig.settle();
    assert_eq!(rig.phases(), [Phase::Ended]);
    assert!(rig.is_off());
    assert_eq!(logged_with("all its CPUs are off"), 1);
}

#[test]
fn a_wire_raised_by_another_vcpu_wakes_the_one_that_waits() {
    let mut turns = 0;
    let waiter = Box::new(move |turn: &mut fake::guests::Turn<'_>| {
        turns += 1;
        if turns > 1 && turn.attention { stops(Stop::PowerOff) } else { Exit::Idle.into() }
    });
    let rig = spread(vec![
        Box::new({
            let mut waiter: Guest = waiter;
            let mut started = false;
            move |turn| if std::mem::replace(&mut started, true) { waiter(turn) } else { starts(1, 0) }
        }),
        does([Act::Work(100), wire(1)]),
    ]);
    rig.settle();
    assert!(rig.is_off(), "it slept through it");
}

/// Waits for interrupts, and says how often it was told of one.
fn counts(told: &'static AtomicUsize) -> Guest {
    Box::new(move |turn| {
        told.fetch_add(usize::from(turn.attention), Ordering::SeqCst);
        Exit::Idle.into()
    })
}

#[test]
fn no_wake_up_is_lost_at_any_moment_of_falling_asleep() {
    for calls in 0..30 {
        let told: &'static AtomicUsize = Box::leak(Box::default());
        let rig = spread(vec![counts(told), waits()]);
        let (vm, arch) = (rig.vm(0), rig.arch(1));
        rig.until(|rig| rig.boots(0, 0) == 1);
        rig.machine().intrude(CpuId(0), calls, move || vm.wake(&arch, VcpuSet::only(0), None));
        rig.settle();
        let expected = usize::from(rig.machine().intruded());
        assert_eq!(told.load(Ordering::SeqCst), expected, "woken at call {calls}");
    }
}

#[test]
fn a_device_alarm_wakes_a_vcpu_that_waits() {
    let told: &'static AtomicUsize = Box::leak(Box::default());
    let mut waiter = counts(told);
    let mut acts = vec![device_alarm(3_000_000)];
    let rig = spread(vec![Box::new(move |turn| acts.pop().unwrap_or_else(|| waiter(turn)))]);
    rig.until(|_| told.load(Ordering::SeqCst) == 1);
    assert!(rig.now() >= milliseconds(3) && rig.now() < milliseconds(4), "{}", rig.now());
}

#[test]
fn a_device_alarm_that_another_cpu_sets_is_rung_by_the_one_that_keeps_time() {
    let told: &'static AtomicUsize = Box::leak(Box::default());
    let mut waiter = counts(told);
    let mut acts = vec![starts(1, 0)];
    let first: Guest = Box::new(move |turn| acts.pop().unwrap_or_else(|| waiter(turn)));
    let pause = (0..5).map(|_| Exit::Preempted.into());
    let rig = spread(vec![first, does(pause.chain([device_alarm(3_000_000)]))]);
    rig.until(|_| told.load(Ordering::SeqCst) == 1);
    assert!(rig.now() < milliseconds(4), "{}", rig.now());
}

#[test]
fn only_an_alarm_earlier_than_the_last_calls_the_cpu_that_keeps_time() {
    let rig = spread(vec![waits()]);
    let (vm, machine, arch) = (rig.vm(0), rig.machine(), rig.arch(0));
    rig.settle();
    for (at_ns, calls) in [(5_000_000, true), (6_000_000, false), (6_000_000, false), (4_000_000, true)] {
        machine.with(|state| state.cpu(CpuId(0)).kicked = false);
        let alarm = Place::Memory(Gpa(LATCH.0 + 8));
        vm.io(&arch, VcpuId(0), alarm, Access::Write(Width::Double, at_ns));
        assert_eq!(machine.with(|state| state.cpu(CpuId(0)).kicked), calls, "at {at_ns} ns");
        rig.settle();
    }
}

#[test]
fn an_alarm_put_off_is_rung_when_it_is_due() {
    let told: &'static AtomicUsize = Box::leak(Box::default());
    let mut waiter = counts(told);
    let mut acts = vec![device_alarm(6_000_000), device_alarm(3_000_000)];
    let rig = spread(vec![Box::new(move |turn| acts.pop().unwrap_or_else(|| waiter(turn)))]);
    rig.until(|_| told.load(Ordering::SeqCst) == 1);
    assert!(rig.now() >= milliseconds(6) && rig.now() < milliseconds(7), "{}", rig.now());
}

#[test]
fn input_wakes_the_device_it_is_for() {
    let told: &'static AtomicUsize = Box::leak(Box::default());
    let mut waiter = counts(told);
    // Receiver and UART on, receive interrupts unmasked (DDI 0183, 3.3.8 and 3.3.10).
    let mut acts = vec![write(Gpa(virt::UART.0 + 0x38), 0x50), write(Gpa(virt::UART.0 + 0x30), 0x301)];
    let rig = spread(vec![Box::new(move |turn| acts.pop().unwrap_or_else(|| waiter(turn)))]);
    rig.settle();
    rig.handed.screen.type_in("x");
    rig.machine().with(|state| state.cpu(CpuId(0)).kicked = true);
    rig.settle();
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

/// Sleeps for `period` by its own timer, again and again, and notes how late it woke.
fn sleeper(period: u64, latest: &'static AtomicUsize) -> Guest {
    let mut due: Option<u64> = None;
    Box::new(move |turn| {
        let now = turn.now();
        if due.is_none_or(|due| now >= due) {
            let late = due.map_or(0, |due| now - due);
            latest.fetch_max(usize::try_from(late).unwrap(), Ordering::SeqCst);
            due = Some(now + period);
            *turn.alarm = due.map(Ticks);
        }
        Exit::Idle.into()
    })
}

#[test]
fn a_timer_wakes_its_vcpu_in_time_though_another_has_the_cpu() {
    let latest: &'static AtomicUsize = Box::leak(Box::default());
    let plan = Plan::new(1).vm("sleeper", &[0], vec![sleeper(milliseconds(20), latest)]);
    let rig = plan.vm("busy", &[0], vec![works()]).boot();
    rig.pass(milliseconds(2000));
    let late = latest.load(Ordering::SeqCst) as u64;
    assert!(late <= milliseconds(5), "{late} ticks late");
    assert!(rig.worked(1, 0) > milliseconds(1900));
}

#[test]
fn a_timer_wakes_its_vcpu_though_all_on_the_cpu_wait() {
    let latest: &'static AtomicUsize = Box::leak(Box::default());
    let plan = Plan::new(1).vm("sleeper", &[0], vec![sleeper(milliseconds(20), latest)]);
    let rig = plan.vm("idle", &[0], vec![waits()]).boot();
    rig.pass(milliseconds(500));
    assert_eq!(latest.load(Ordering::SeqCst), 0);
}

#[test]
fn two_that_share_a_cpu_take_turns() {
    let plan = Plan::new(1).vm("a", &[0], vec![works()]).vm("b", &[0], vec![works()]);
    let rig = plan.boot();
    rig.pass(TICKS_PER_SECOND);
    let [a, b] = [rig.worked(0, 0), rig.worked(1, 0)];
    assert!(a.abs_diff(b) <= milliseconds(6), "{a} and {b}");
    assert!(a + b > TICKS_PER_SECOND * 99 / 100);
    assert!(rig.machine().with(|state| state.guest((0, 0)).shared));
}

#[test]
fn a_stuck_guest_ends_after_two_checks() {
    let rig = spread(vec![works()]);
    rig.pass(milliseconds(600));
    assert_eq!(rig.phases(), [Phase::Running]);
    rig.machine().with(|state| state.guest((0, 0)).stuck = true);
    rig.until(Rig::is_off);
    assert!(rig.now() < milliseconds(2200));
    assert_eq!(logged_with("faults for ever"), 1);
}

#[test]
fn sharing_a_cpu_hides_no_stuck_guest() {
    for stuck in 0..2 {
        let plan = Plan::new(1).vm("a", &[0], vec![works()]).vm("b", &[0], vec![works()]);
        let rig = plan.boot();
        rig.machine().with(|state| state.guest((stuck, 0)).stuck = true);
        rig.pass(milliseconds(2000));
        assert_eq!(rig.vm(stuck).phase(), Phase::Ended, "VM {stuck}");
        assert_eq!(rig.vm(1 - stuck).phase(), Phase::Running);
    }
}

#[test]
fn one_that_makes_progress_again_goes_on() {
    let rig = spread(vec![works()]);
    for _ in 0..4 {
        rig.machine().with(|state| state.guest((0, 0)).stuck ^= true);
        rig.pass(milliseconds(500));
    }
    assert_eq!(rig.phases(), [Phase::Running]);
}
