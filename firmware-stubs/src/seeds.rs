//! What a guest's kernel starts its random numbers from. Pure.

use sha2::{Digest as _, Sha256};

/// One VM's seeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seeds {
    /// For the kernel's random number generator.
    pub rng: [u8; 32],
    /// For the kernel's place in its address space.
    pub kaslr: u64,
}

impl Seeds {
    /// The seeds of VM number `vm`, from random bytes of the machine; none if it had none. By a one-way function, so that no
    /// guest learns another's.
    #[must_use]
    pub fn derive(entropy: &[u8], vm: usize) -> Option<Self> {
        if entropy.is_empty() {
            return None;
        }
        let hash = |purpose: &[u8]| {
            Sha256::new()
                .chain_update(entropy)
                .chain_update(vm.to_le_bytes())
                .chain_update(purpose)
                .finalize()
        };
        let mut kaslr = [0; 8];
        kaslr.copy_from_slice(&hash(b"kaslr")[..8]);
        Some(Self { rng: hash(b"rng").into(), kaslr: u64::from_le_bytes(kaslr) })
    }
}

#[cfg(test)]
mod tests {
    use super::Seeds;

    #[test]
    fn each_vm_has_seeds_of_its_own() {
        let [one, other] = [0, 1].map(|vm| Seeds::derive(&[7; 32], vm).unwrap());
        assert_ne!(one.rng, other.rng);
        assert_ne!(one.kaslr, other.kaslr);
        assert_eq!(Seeds::derive(&[7; 32], 0), Some(one), "a restart finds the same machine");
    }

    #[test]
    fn without_entropy_there_are_no_seeds() {
        assert_eq!(Seeds::derive(&[], 0), None);
    }
}
