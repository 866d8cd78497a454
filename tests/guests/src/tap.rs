//! Test Anything Protocol, version 13: one line per check, the plan last, then one line that sums it up.

use core::fmt::Debug;

use crate::{power_off, println};

/// The checks of one program so far.
#[derive(Default)]
pub struct Tap {
    checks: u32,
    failed: u32,
}

impl Tap {
    /// Starts the report of the program called `name`.
    #[must_use]
    pub fn start(name: &str) -> Self {
        println!("TAP version 13");
        println!("# {name}");
        Self::default()
    }

    /// One check.
    pub fn check(&mut self, name: &str, holds: bool) {
        self.checks += 1;
        if holds {
            println!("ok {} - {name}", self.checks);
            return;
        }
        self.failed += 1;
        println!("not ok {} - {name}", self.checks);
    }

    /// One check that `found` is `wanted`; says both if not.
    pub fn equal<T: PartialEq + Debug>(&mut self, name: &str, found: T, wanted: T) {
        let holds = found == wanted;
        self.check(name, holds);
        if !holds {
            println!("# found {found:x?}, wanted {wanted:x?} (hexadecimal)");
        }
    }

    /// One check that does not apply here.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.checks += 1;
        println!("ok {} - {name} # SKIP {reason}", self.checks);
    }

    /// Prints the plan and `# passed N` or `# failed F of N`, then powers the machine off.
    pub fn finish(self) -> ! {
        println!("1..{}", self.checks);
        match self.failed {
            0 => println!("# passed {}", self.checks),
            failed => println!("# failed {failed} of {}", self.checks),
        }
        power_off()
    }
}
