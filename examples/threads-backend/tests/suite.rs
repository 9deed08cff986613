//! The suite that every backend passes, and the faults that it would catch in this one.

use threads_backend::Threads;

swiglu_testing::suite!(threads, Threads::open);
swiglu_testing::mutants!(threads_made_wrong, Threads::open);
