//! The suite that every backend passes, and the faults that it would catch in this one.

use threads_backend::Threads;

swiglu_conformance::suite!(threads, || Ok::<_, String>(Threads(2)));
swiglu_conformance::mutants!(threads_made_wrong, || Ok::<_, String>(Threads(2)));
