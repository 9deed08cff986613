//! What every kernel's launch needs: the driver, the kernels' parameters, the options of a call.

pub(crate) mod driver;
pub(crate) mod foreign;
pub(crate) mod options;
pub(crate) mod params;
pub(crate) mod tensor_map;
