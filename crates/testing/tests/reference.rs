//! The reference passes its own suite.

swiglu_testing::suite!(reference, || Ok(swiglu_core::reference::Reference));
