//! The GPUs that this library has code for: the one list. build.rs compiles by it, the crate chooses by it.

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// Machine code. Runs on GPUs of the same major version, from the minor version on.
    Machine,
    /// PTX, which the driver compiles when it is loaded. Runs on this GPU and on all newer ones.
    Ptx,
}

/// A compute capability, and the kind of code for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    /// First number of the compute capability.
    pub major: u32,
    /// Second number of the compute capability.
    pub minor: u32,
    /// What the images of this architecture hold.
    pub code: Code,
}

/// All architectures, oldest first.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture::machine(7, 0),  // V100
    Architecture::machine(7, 5),  // T4
    Architecture::machine(8, 0),  // A100
    Architecture::machine(8, 6),  // A10
    Architecture::machine(8, 9),  // L4
    Architecture::machine(9, 0),  // H100, H200
    Architecture::machine(10, 0), // B200
    Architecture::machine(12, 0), // RTX 50
    Architecture::ptx(9, 0),      // what comes later
];

impl Architecture {
    /// Machine code for GPUs of this capability.
    pub const fn machine(major: u32, minor: u32) -> Self {
        Self { major, minor, code: Code::Machine }
    }

    /// PTX for GPUs of this capability and newer ones.
    pub const fn ptx(major: u32, minor: u32) -> Self {
        Self { major, minor, code: Code::Ptx }
    }

    /// The compiler's name for it: `sm_90` for machine code, `compute_90` for PTX.
    pub fn name(self) -> String {
        let prefix = match self.code {
            Code::Machine => "sm",
            Code::Ptx => "compute",
        };
        format!("{prefix}_{}{}", self.major, self.minor)
    }
}
