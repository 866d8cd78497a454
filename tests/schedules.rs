//! Random guests under random interleavings of several CPUs: nothing panics, and nothing hangs.
//!
//! The fake checks the order of the core's calls at each of them; here is only the chaos.

mod fake;

use bulkhead::arch::{Exit, Stop, Ticks};
use bulkhead::config::{OnFault, Unmapped};
use bulkhead::vm::Phase;
use bulkhead_vdev::{Gpa, VcpuSet, virt};
use fake::guests::{Act, Guest, device_alarm, faults, read, starts, stops, wire, write};
use fake::rig::{Plan, Rig};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CPUS: u32 = 3;

/// A guest that does what `program` says, over and over, until it is told to finish.
fn random(program: Vec<u8>, finish: Arc<AtomicBool>) -> Guest {
    let mut next = 0;
    Box::new(move |turn| {
        if finish.load(Ordering::SeqCst) {
            return stops(Stop::PowerOff);
        }
        let code = program[next % program.len()];
        next += 1;
        let small = u64::from(code >> 4);
        match code & 15 {
            0..4 => starts(usize::from(code >> 4) % 5, small),
            4 => wire(small & 1),
            5 => write(virt::UART, b'a'.into()),
            6 => read(Gpa(small << 24)),
            7 => device_alarm(small * 100_000),
            8 => {
                *turn.alarm = (small > 3).then(|| Ticks(turn.now() + small * 1000));
                Exit::Idle.into()
            }
            9 => Exit::Idle.into(),
            10 => stops(Stop::CpuOff),
            11 => match code >> 4 {
                0 => stops(Stop::PowerOff),
                1..6 => stops(Stop::Reset),
                6 => faults(),
                _ => Act::Work(1),
            },
            12 => Exit::Hypercall(small, [0; 4]).into(),
            13 => Exit::Preempted.into(),
            _ => Act::Work(small * 5000),
        }
    })
}

/// One move of a schedule: a CPU decides, while another one decides in the middle of that.
#[derive(Clone, Copy, Debug)]
struct Move {
    cpu: usize,
    other: usize,
    calls: usize,
    steps: usize,
    wakes: (usize, usize),
}

fn a_move() -> impl Strategy<Value = Move> {
    let cpus = CPUS as usize;
    (0..cpus, 1..cpus, 0..24_usize, 0..4_usize, (0..2_usize, 0..8_usize)).prop_map(
        move |(cpu, further, calls, steps, wakes)| Move {
            cpu,
            other: (cpu + further) % cpus,
            calls,
            steps,
            wakes,
        },
    )
}

fn play(rig: &Rig, moves: &[Move]) {
    for one in moves {
        rig.intrude(one.cpu, one.calls, one.other, one.steps);
        let (vm, vcpu) = one.wakes;
        if vcpu < rig.vm(vm).vcpus() && rig.vm(vm).phase() == Phase::Running {
            rig.wake(0, vm, vcpu);
        }
        if !rig.step(one.cpu) {
            rig.machine().with(|state| state.now += 10_000);
        }
        rig.machine().intruded();
    }
}

/// From now on each guest switches off when it runs: does the machine get there?
fn finish(rig: &Rig) {
    rig.until(|rig| {
        for (vm, other) in rig.hypervisor.vms.iter().enumerate() {
            if other.phase() == Phase::Running {
                rig.vm(vm).wake(&rig.arch(0), VcpuSet((1 << other.vcpus()) - 1), None);
            }
        }
        rig.is_off()
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_interleaving_panics_or_hangs(
        programs in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 5),
        moves in prop::collection::vec(a_move(), 1..300),
        [restart, strict] in any::<[bool; 2]>(),
    ) {
        let told = Arc::new(AtomicBool::new(false));
        let guest = |number: usize| random(programs[number].clone(), told.clone());
        let plan = Plan::new(CPUS)
            .vm("a", &[], vec![guest(0), guest(1), guest(2)])
            .with(|vm| vm.config.on_fault = if restart { OnFault::Restart } else { OnFault::Stop })
            .vm("b", &[1, 0], vec![guest(3), guest(4)])
            .with(|vm| vm.config.unmapped = if strict { Unmapped::Stop } else { Unmapped::AsHardware });
        // However a guest hurries from exit to exit, time passes, so that its CPU comes back.
        plan.machine.with(|state| state.ticks_per_exit = 100_000);
        let rig = plan.boot();
        play(&rig, &moves);
        told.store(true, Ordering::SeqCst);
        finish(&rig);
    }
}

#[test]
fn the_same_chaos_in_threads_ends_too() {
    for seed in 0..20_u8 {
        let told = Arc::new(AtomicBool::new(false));
        let guest = |number: u8| -> Guest {
            let salt = seed.wrapping_mul(11).wrapping_add(number.wrapping_mul(29));
            let program = (0..50_u8).map(|at| at.wrapping_mul(37).wrapping_add(salt)).collect();
            let (mut inner, told, mut left) = (random(program, told.clone()), told.clone(), 2000);
            Box::new(move |turn| {
                left -= 1;
                if left == 0 {
                    told.store(true, Ordering::SeqCst);
                }
                match inner(turn) {
                    // Nobody is left to wake a guest in this test, so none waits without a timer.
                    Act::Exit(Exit::Idle) => {
                        *turn.alarm = Some(Ticks(turn.now() + 1000));
                        Exit::Idle.into()
                    }
                    act => act,
                }
            })
        };
        let plan = Plan::new(CPUS).vm("a", &[], vec![guest(0), guest(1), guest(2)]).vm(
            "b",
            &[1, 0],
            vec![guest(3), guest(4)],
        );
        plan.machine.with(|state| state.ticks_per_exit = 1000);
        let (_, error) = plan.run_in_threads();
        assert!(error.is_none());
    }
}
