use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::{Accumulation, Error, Operator, Result, Support};

/// Which operators run on a backend; the others run [`crate::reference`].
///
/// Written as vLLM's `custom_ops`: `all` or `none`, then `+name` and `-name`, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpSwitches {
    all: bool,
    named: BTreeMap<&'static str, bool>,
}

impl Default for OpSwitches {
    /// All on.
    fn default() -> Self {
        Self {
            all: true,
            named: BTreeMap::new(),
        }
    }
}

impl OpSwitches {
    /// The environment variable that [`Dispatch::from_env`] reads.
    pub const VARIABLE: &'static str = "SWIGLU_OPS";

    /// Reads a list such as `none,+silu_and_mul`. Empty text is `all`.
    ///
    /// # Errors
    /// An unknown name, both `all` and `none`, or both `+x` and `-x`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut all = None;
        let mut named = BTreeMap::new();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (on, name) = match (word, word.split_at_checked(1)) {
                ("all" | "none", _) => {
                    let on = word == "all";
                    if all.replace(on).is_some_and(|before| before != on) {
                        return Err(Error::argument("ops", "either all or none", text));
                    }
                    continue;
                }
                (_, Some(("+", name))) => (true, name),
                (_, Some(("-", name))) => (false, name),
                _ => {
                    let expected = "all, none, +name or -name";
                    return Err(Error::argument("ops", expected, format!("`{word}`")));
                }
            };
            let Some(operator) = Operator::from_name(name) else {
                let names = Operator::ALL.map(Operator::name).join(", ");
                let expected = format!("one of {names}");
                return Err(Error::argument("ops", expected, format!("`{name}`")));
            };
            if named.insert(operator.name(), on).is_some_and(|b| b != on) {
                let expected = format!("either +{name} or -{name}");
                return Err(Error::argument("ops", expected, "both"));
            }
        }
        Ok(Self {
            all: all.unwrap_or(true),
            named,
        })
    }

    /// Whether the operator runs on a backend.
    pub fn enabled(&self, operator: Operator) -> bool {
        *self.named.get(operator.name()).unwrap_or(&self.all)
    }
}

/// What a device is opened with. More may be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The least exact class of sums that matmuls may use; [`Accumulation::MatrixUnit`] by default.
    pub accumulation: Accumulation,
    /// The number of the platform's device, from 0 on in the platform's own order; by default the
    /// first that the platform can use. A platform with one device refuses all but 0.
    pub device: Option<usize>,
}

impl OpenOptions {
    /// The environment variable that [`Dispatch::from_env`] reads for [`Self::accumulation`].
    pub const ACCUMULATION_VARIABLE: &'static str = "SWIGLU_ACCUMULATION";
    /// The environment variable that [`Dispatch::from_env`] reads for [`Self::device`].
    pub const DEVICE_VARIABLE: &'static str = "SWIGLU_DEVICE";

    /// The same with this class of sums.
    #[must_use]
    pub const fn with_accumulation(mut self, accumulation: Accumulation) -> Self {
        self.accumulation = accumulation;
        self
    }

    /// The same with the platform's device of this number; none for the first that can be used.
    #[must_use]
    pub const fn with_device(mut self, device: Option<usize>) -> Self {
        self.device = device;
        self
    }
}

/// What decides which backend runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispatch {
    /// Only this platform; any, in the registry's order, if `None`.
    pub platform: Option<String>,
    /// Which operators run on a backend.
    pub ops: OpSwitches,
    /// What its device is opened with.
    pub open: OpenOptions,
}

impl Dispatch {
    /// The environment variable that names the platform.
    pub const PLATFORM_VARIABLE: &'static str = "SWIGLU_PLATFORM";

    /// Reads `SWIGLU_PLATFORM` (a name, or `auto`), `SWIGLU_DEVICE` (a number), `SWIGLU_OPS` and
    /// `SWIGLU_ACCUMULATION`.
    ///
    /// # Errors
    /// As [`OpSwitches::parse`] and [`Accumulation::from_name`], a device that is no number, or a
    /// value that is not UTF-8.
    pub fn from_env() -> Result<Self> {
        let read = |name: &'static str| match std::env::var(name) {
            Ok(text) => Ok(text),
            Err(std::env::VarError::NotPresent) => Ok(String::new()),
            Err(error @ std::env::VarError::NotUnicode(_)) => {
                Err(Error::argument(name, "UTF-8", error))
            }
        };
        let platform = read(Self::PLATFORM_VARIABLE)?;
        let accumulation = match read(OpenOptions::ACCUMULATION_VARIABLE)?.as_str() {
            "" => Accumulation::default(),
            name => Accumulation::from_name(name)?,
        };
        let device = match read(OpenOptions::DEVICE_VARIABLE)?.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                let expected = "the number of a device, from 0 on";
                Error::argument(OpenOptions::DEVICE_VARIABLE, expected, format!("`{text}`"))
            })?),
        };
        let open = OpenOptions::default().with_accumulation(accumulation);
        Ok(Self {
            open: open.with_device(device),
            platform: (!matches!(platform.as_str(), "" | "auto")).then_some(platform),
            ops: OpSwitches::parse(&read(OpSwitches::VARIABLE)?)?,
        })
    }
}

/// A platform that was passed over, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The platform's name.
    pub platform: String,
    /// Why it was not taken.
    pub reason: String,
}

/// Which path runs, and why not another. Prints as one line, and a line for each of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The platform that runs.
    pub chosen: String,
    /// How it runs: native, or emulated with the reason.
    pub support: Support,
    /// Those passed over, in the order they were tried.
    pub rejected: Vec<Rejection>,
    /// The kernels that run, a line each; empty where nobody asked.
    pub plan: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.chosen, self.support)?;
        for (i, r) in self.rejected.iter().enumerate() {
            let lead = if i == 0 { "; not" } else { "," };
            write!(f, "{lead} {} ({})", r.platform, r.reason)?;
        }
        self.plan
            .iter()
            .try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// A device, or why there is none.
type Opened<D> = std::result::Result<Arc<D>, String>;

/// Opens a platform's device.
type Probe<D> = Box<dyn Fn(&OpenOptions) -> Opened<D> + Send + Sync>;

/// A device that somebody may still hold, and what it was opened with.
type Held<D> = (OpenOptions, Weak<D>);

struct Entry<D: ?Sized> {
    platform: String,
    probe: Probe<D>,
    opened: Mutex<Option<Held<D>>>,
}

impl<D: ?Sized> Entry<D> {
    fn new<P>(platform: impl Into<String>, probe: P) -> Self
    where
        P: Fn(&OpenOptions) -> Opened<D> + Send + Sync + 'static,
    {
        Self {
            platform: platform.into(),
            probe: Box::new(probe),
            opened: Mutex::new(None),
        }
    }

    /// The device that somebody holds, if it was opened with the same, or a new one.
    fn open(&self, options: &OpenOptions) -> Opened<D> {
        // A probe that panicked left nothing half done here.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((with, held)) = opened.as_ref()
            && with == options
            && let Some(device) = held.upgrade()
        {
            return Ok(device);
        }
        let device = (self.probe)(options)?;
        *opened = Some((options.clone(), Arc::downgrade(&device)));
        Ok(device)
    }
}

/// The platforms that can be chosen, each with a probe that opens its device or says why not.
///
/// A device is opened when it is first asked for and shared as long as somebody holds it: to open
/// one may mean to compile its kernels.
///
/// `D` is what a probe opens: the facade's erased device, or a type of the caller's own.
pub struct Registry<D: ?Sized> {
    entries: Vec<Entry<D>>,
}

impl<D: ?Sized> Default for Registry<D> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<D: ?Sized> fmt::Debug for Registry<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.platforms()).finish()
    }
}

impl<D: ?Sized> Registry<D> {
    /// A registry of no platforms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a platform of the library's own behind those already there.
    pub fn built_in<P>(&mut self, platform: impl Into<String>, probe: P)
    where
        P: Fn(&OpenOptions) -> Opened<D> + Send + Sync + 'static,
    {
        self.entries.push(Entry::new(platform, probe));
    }

    /// Adds a platform from outside. It is tried before the built-in ones, and before a built-in
    /// of the same name in particular; of several, the one registered last is tried first.
    pub fn register<P>(&mut self, platform: impl Into<String>, probe: P)
    where
        P: Fn(&OpenOptions) -> Opened<D> + Send + Sync + 'static,
    {
        self.entries.insert(0, Entry::new(platform, probe));
    }

    /// The platforms' names in the order they are tried.
    pub fn platforms(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.platform.as_str())
    }

    /// Opens the platforms of these names, and touches no other: each one's device, or why there
    /// is none.
    pub fn probe(
        &self,
        options: &OpenOptions,
        wanted: impl Fn(&str) -> bool,
    ) -> Vec<(&str, std::result::Result<Arc<D>, String>)> {
        self.entries
            .iter()
            .filter(|e| wanted(&e.platform))
            .map(|e| (e.platform.as_str(), e.open(options)))
            .collect()
    }

    /// Takes the first platform that opens and of which `supports` does not say no.
    ///
    /// # Errors
    /// An unknown platform's name, or [`Error::NoPlatform`] with every platform's reason.
    pub fn select(
        &self,
        dispatch: &Dispatch,
        supports: impl Fn(&D) -> Support,
    ) -> Result<(Arc<D>, Report)> {
        if let Some(wanted) = &dispatch.platform
            && !self.platforms().any(|p| p == wanted)
        {
            let known = self.platforms().collect::<Vec<_>>().join(", ");
            let expected = format!("auto or one of {known}");
            return Err(Error::argument("platform", expected, format!("`{wanted}`")));
        }
        let mut rejected = Vec::new();
        for entry in &self.entries {
            let wanted = dispatch.platform.as_ref();
            let reason = if wanted.is_some_and(|w| *w != entry.platform) {
                "not asked for".to_owned()
            } else {
                match entry.open(&dispatch.open) {
                    Err(reason) => reason,
                    Ok(device) => match supports(&device) {
                        Support::No(reason) => reason,
                        support => {
                            let report = Report {
                                chosen: entry.platform.clone(),
                                support,
                                rejected,
                                plan: Vec::new(),
                            };
                            return Ok((device, report));
                        }
                    },
                }
            };
            rejected.push(Rejection {
                platform: entry.platform.clone(),
                reason,
            });
        }
        let reasons: Vec<_> = rejected
            .iter()
            .map(|r| format!("{}: {}", r.platform, r.reason))
            .collect();
        Err(Error::NoPlatform(reasons.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_read_as_vllms() {
        let on = |text: &str| {
            OpSwitches::parse(text)
                .unwrap()
                .enabled(Operator::SiluAndMul)
        };
        assert!(on("") && on("all") && on("none,+silu_and_mul") && on("-gelu_and_mul"));
        assert!(!on("none") && !on("-silu_and_mul") && !on("all, -silu_and_mul"));
        for bad in [
            "+silu_and_mul,-silu_and_mul",
            "all,none",
            "+swish",
            "silu_and_mul",
            "+",
            "é",
        ] {
            assert!(OpSwitches::parse(bad).is_err(), "{bad}");
        }
    }

    fn registry() -> Registry<u8> {
        let mut registry = Registry::new();
        registry.built_in("gpu", |_| Err("no device".to_owned()));
        registry.built_in("cpu", |_| Ok(Arc::new(1)));
        registry
    }

    #[test]
    fn the_first_that_opens_and_supports_is_taken_and_the_rest_explained() {
        let (device, report) = registry()
            .select(&Dispatch::default(), |_| Support::Native)
            .unwrap();
        assert_eq!(*device, 1);
        assert_eq!(report.to_string(), "cpu (native); not gpu (no device)");
        let error = registry()
            .select(&Dispatch::default(), |_| Support::No("f16".to_owned()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("gpu: no device; cpu: f16"), "{error}");
    }

    #[test]
    fn a_device_is_opened_once_while_it_is_held_and_only_if_it_is_wanted() {
        let mut registry = registry();
        registry.built_in("other", |_| unreachable!("nobody wants it"));
        let select = || registry.select(&Dispatch::default(), |_| Support::Native);
        let (device, _) = select().unwrap();
        assert!(Arc::ptr_eq(&device, &select().unwrap().0));
        let probed = registry.probe(&OpenOptions::default(), |platform| platform != "other");
        assert_eq!(probed[0], ("gpu", Err("no device".to_owned())));
        assert!(matches!(&probed[1], ("cpu", Ok(cpu)) if Arc::ptr_eq(cpu, &device)));
        let held = Arc::downgrade(&device);
        drop((device, probed));
        assert!(held.upgrade().is_none() && select().is_ok());
    }

    #[test]
    fn a_device_that_was_opened_otherwise_is_not_shared() {
        let mut registry = Registry::<OpenOptions>::new();
        registry.built_in("cpu", |options| Ok(Arc::new(options.clone())));
        let select = |accumulation| {
            let open = OpenOptions::default().with_accumulation(accumulation);
            let dispatch = Dispatch {
                open,
                ..Dispatch::default()
            };
            let (device, _) = registry.select(&dispatch, |_| Support::Native).unwrap();
            device
        };
        let ordered = select(Accumulation::Ordered);
        let unit = select(Accumulation::MatrixUnit);
        assert_eq!(ordered.accumulation, Accumulation::Ordered);
        assert_eq!(unit.accumulation, Accumulation::MatrixUnit);
    }

    #[test]
    fn a_platform_from_outside_wins_over_the_built_in_of_its_name() {
        let mut registry = registry();
        registry.register("cpu", |_| Ok(Arc::new(2)));
        let only_cpu = Dispatch {
            platform: Some("cpu".to_owned()),
            ..Dispatch::default()
        };
        let (device, _) = registry.select(&only_cpu, |_| Support::Native).unwrap();
        assert_eq!(*device, 2);
        let unknown = Dispatch {
            platform: Some("tpu".to_owned()),
            ..Dispatch::default()
        };
        assert!(registry.select(&unknown, |_| Support::Native).is_err());
    }
}
