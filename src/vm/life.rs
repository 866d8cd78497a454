//! A VM's life: loaded, running, stopping, loaded again or ended.
//!
//! Any CPU may stop a VM; each of its vCPUs then parks once, and the last one decides what follows.

use super::{NANOSECONDS, NEVER, Vm, scale};
use crate::arch::{Arch, Stop, VcpuId};
use crate::config::OnFault;
use bulkhead_vdev::{Gpa, GuestMemory, IrqLines};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use spin::mutex::SpinMutex as Mutex;

/// Bytes that one step of loading copies: short enough for other VMs on the CPU not to notice.
const LOAD_STEP: usize = 256 * 1024;

/// Where a VM is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Its payload is being copied into its RAM.
    Loading,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs leave their CPUs.
    Stopping,
    /// It does not run again.
    Ended,
}

pub(super) struct Life {
    phase: AtomicU8,
    /// Counts stops; each vCPU parks once for each.
    stops: AtomicU32,
    parked: AtomicU32,
    again: AtomicBool,
    loaded: Mutex<Progress>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    segment: usize,
    offset: usize,
}

impl Life {
    /// About to be loaded.
    pub(super) fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Loading as u8),
            stops: AtomicU32::new(0),
            parked: AtomicU32::new(0),
            again: AtomicBool::new(false),
            loaded: Mutex::new(Progress::default()),
        }
    }
}

impl<A: Arch> Vm<A> {
    /// Where the VM is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.life.phase.load(Ordering::SeqCst) {
            0 => Phase::Loading,
            1 => Phase::Running,
            2 => Phase::Stopping,
            _ => Phase::Ended,
        }
    }

    /// Stops the VM: all its vCPUs leave their CPUs. The first reason counts; returns whether this was it.
    pub fn stop(&self, arch: &A, why: Stop) -> bool {
        let again = match why {
            Stop::Reset => true,
            Stop::Fault(_) => self.config.on_fault == OnFault::Restart,
            Stop::PowerOff | Stop::CpuOff => false,
        };
        let first = self.enter(Phase::Running, Phase::Stopping);
        if first {
            self.life.again.store(again, Ordering::SeqCst);
            self.life.stops.fetch_add(1, Ordering::SeqCst);
            self.call_all(arch);
        }
        first
    }

    /// Ends the VM on the spot, whatever its life was at: nothing of it can be relied on any more.
    pub fn condemn(&self, arch: &A) {
        self.life.phase.store(Phase::Ended as u8, Ordering::SeqCst);
        self.call_all(arch);
    }

    /// How often the VM was stopped: a vCPU parks once for each.
    #[must_use]
    pub fn stops(&self) -> u32 {
        self.life.stops.load(Ordering::SeqCst)
    }

    /// One vCPU has left its CPU for a stop. The last one decides what follows: loaded again, or ended (`true`).
    pub fn park(&self, arch: &A) -> bool {
        let parked = self.life.parked.fetch_add(1, Ordering::SeqCst) + 1;
        if parked as usize != self.slots.len() {
            return false;
        }
        self.life.parked.store(0, Ordering::SeqCst);
        if !self.life.again.load(Ordering::SeqCst) {
            return self.enter(Phase::Stopping, Phase::Ended);
        }
        *self.lock(arch, &self.life.loaded) = Progress::default();
        self.began.store(arch.now().0, Ordering::Relaxed);
        self.enter(Phase::Stopping, Phase::Loading);
        self.call_all(arch);
        false
    }

    /// Copies the next part of the payload; after the last one the devices are as after power-on and the first vCPU
    /// starts. Called by the keeper while the VM is loading.
    pub fn load_step(&self, arch: &A) {
        let began = arch.now();
        let mut progress = self.lock(arch, &self.life.loaded);
        if let Some(segment) = self.segments.get(progress.segment) {
            let end = segment.bytes.len().min(progress.offset + LOAD_STEP);
            let part = segment.bytes.get(progress.offset..end).unwrap_or(&[]);
            let to = Gpa(segment.to.0 + progress.offset as u64);
            // `new` has seen that every segment fits.
            let _ = self.ram.write(to, part);
            let _ = self.ram.pieces(to, part.len(), |host, _, count| arch.publish(host, count));
            *progress = if end == segment.bytes.len() {
                Progress { segment: progress.segment + 1, offset: 0 }
            } else {
                Progress { offset: end, ..*progress }
            };
            self.payload_ticks.fetch_add(arch.now().0.saturating_sub(began.0), Ordering::Relaxed);
            return;
        }
        drop(progress);
        self.power_on(arch);
    }

    fn power_on(&self, arch: &A) {
        // Like any reset, this one leaves no translation cached.
        arch.invalidate(self.index, &self.space);
        self.irqs(arch).reset();
        for wired in &self.devices {
            let mut model = self.lock(arch, &wired.model);
            model.device.reset();
            // Input may come in the middle of this: a wire that it raised falls with its device.
            if core::mem::take(&mut model.level)
                && let Some(line) = wired.line
            {
                let _ = self.irqs(arch).set_line(line, false);
            }
            wired.alarm_ns.store(NEVER, Ordering::Relaxed);
        }
        self.attention.store(0, Ordering::SeqCst);
        for slot in &self.slots {
            slot.on.store(false, Ordering::SeqCst);
            slot.idle.store(false, Ordering::SeqCst);
            *self.lock(arch, &slot.entry) = None;
        }
        let whole = arch.now().0.saturating_sub(self.began.load(Ordering::Relaxed));
        let [whole, payload] = [whole, self.payload_ticks.swap(0, Ordering::Relaxed)]
            .map(|ticks| scale(ticks, NANOSECONDS, arch.ticks_per_second()));
        if self.may_log(arch, 1) {
            log::info!(
                "{}: boot: first guest instruction after {whole} ns ({payload} ns copying and verifying)",
                self.config.name
            );
        }
        self.enter(Phase::Loading, Phase::Running);
        // A VM has a first vCPU, and it was just switched off.
        let _ = self.start(arch, VcpuId(0), self.entry);
    }

    fn enter(&self, from: Phase, to: Phase) -> bool {
        self.life.phase.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn call_all(&self, arch: &A) {
        for slot in &self.slots {
            self.call(arch, slot);
        }
    }
}
