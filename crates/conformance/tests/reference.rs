//! The reference passes its own suite, and lacks nothing.

use swiglu_core::reference::Reference;

swiglu_conformance::suite!(reference, || Ok(Reference));
swiglu_conformance::complete!(reference_is_complete, || Ok(Reference));
