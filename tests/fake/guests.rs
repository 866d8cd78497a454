//! What fake guests do.

use super::machine::Machine;
use super::{Fake, LATCH};
use bulkhead::arch::{Entry, Exit, Fault, Place, Stop, Ticks, VcpuId};
use bulkhead::vm::Vm;
use bulkhead_vdev::{Access, Gpa, VcpuSet, Width, virt};
use std::collections::VecDeque;

/// A guest's CPU: called for each thing it does.
pub(crate) type Guest = Box<dyn FnMut(&mut Turn<'_>) -> Act + Send>;

/// One thing that a guest does.
pub(crate) enum Act {
    /// Something that is not the back end's own.
    Exit(Exit),
    /// It computes for so many ticks.
    Work(u64),
}

impl From<Exit> for Act {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

/// What a guest sees when it is called.
pub(crate) struct Turn<'a> {
    pub(crate) vm: &'a Vm<Fake>,
    pub(crate) id: VcpuId,
    pub(crate) entry: Entry,
    /// How often this vCPU was started.
    pub(crate) boots: u32,
    /// It was told to look at its interrupts.
    pub(crate) attention: bool,
    /// Its own timer.
    pub(crate) alarm: &'a mut Option<Ticks>,
    pub(crate) machine: &'static Machine,
}

impl Turn<'_> {
    pub(crate) fn now(&self) -> u64 {
        self.machine.with(|state| state.now)
    }
}

/// Does what is listed, then waits for ever. A restart goes on in the list.
pub(crate) fn does(acts: impl IntoIterator<Item = Act>) -> Guest {
    let mut acts: VecDeque<Act> = acts.into_iter().collect();
    Box::new(move |_| acts.pop_front().unwrap_or(Act::Exit(Exit::Idle)))
}

/// Waits for interrupts that it does not care for.
pub(crate) fn waits() -> Guest {
    does([])
}

/// Computes for ever.
pub(crate) fn works() -> Guest {
    Box::new(|_| Act::Work(1_000))
}

pub(crate) fn write(at: Gpa, value: u64) -> Act {
    Exit::Io(Place::Memory(at), Access::Write(Width::Word, value)).into()
}

pub(crate) fn read(at: Gpa) -> Act {
    Exit::Io(Place::Memory(at), Access::Read(Width::Word)).into()
}

/// Sets the wire of the test device.
pub(crate) fn wire(level: u64) -> Act {
    write(LATCH, level)
}

/// Asks the test device for what it can wish.
pub(crate) fn wishes(what: u64) -> Act {
    write(Gpa(LATCH.0 + 4), what)
}

pub(crate) fn port(access: Access, port: u16) -> Act {
    Exit::Io(Place::Port(port), access).into()
}

pub(crate) fn switches_off(vcpus: &[usize]) -> Act {
    Exit::SwitchOff(vcpus.iter().fold(VcpuSet::EMPTY, |set, vcpu| set.union(VcpuSet::only(*vcpu)))).into()
}

/// Breaks the test device: a panic of the hypervisor's.
pub(crate) fn breaks() -> Act {
    write(Gpa(LATCH.0 + 12), 1)
}

/// The same a little later, when the device is told of the time.
pub(crate) fn breaks_later() -> Act {
    write(Gpa(LATCH.0 + 12), 2)
}

/// Sets the alarm of the test device.
pub(crate) fn device_alarm(at_ns: u64) -> Act {
    Exit::Io(Place::Memory(Gpa(LATCH.0 + 8)), Access::Write(Width::Double, at_ns)).into()
}

/// Lets the test device ring again and again.
pub(crate) fn device_rings(period_ns: u64) -> Act {
    Exit::Io(Place::Memory(Gpa(LATCH.0 + 16)), Access::Write(Width::Double, period_ns)).into()
}

pub(crate) fn prints(text: &str) -> Vec<Act> {
    text.bytes().map(|byte| write(virt::UART, byte.into())).collect()
}

pub(crate) fn starts(vcpu: usize, pc: u64) -> Act {
    Exit::Start(VcpuSet::only(vcpu), Entry { pc: Gpa(pc), arguments: [7, 0, 0, 0], state: 0 }).into()
}

pub(crate) fn stops(why: Stop) -> Act {
    Exit::Stopped(why).into()
}

pub(crate) fn faults() -> Act {
    stops(Stop::Fault(Fault { cause: "it did what it cannot do", at: Some(Place::Memory(Gpa(0x42))) }))
}
