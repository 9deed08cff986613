/// What the machine can do, measured in the same run. What is not known is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// GB/s of reading from memory.
    pub read: Option<f64>,
    /// GB/s of reading two bytes for each that is written, both from and to memory.
    pub read_and_write: Option<f64>,
    /// 10⁹ multiplications and additions of f32 a second.
    pub gigaflops: Option<f64>,
}

/// The limits of a platform, and a line that says how they were come by, or why there are none.
pub fn measure(platform: &str) -> (Limits, String) {
    let note = format!("none: nothing here measures those of {platform}");
    (Limits::default(), note)
}
