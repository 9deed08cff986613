//! Flags that several commands share.

use clap::{Arg, ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use swiglu::mlp::OpenMode;
use swiglu::{Accumulation, Dispatcher, GatedActivation, Parameter, Parameters, Quantization};

use super::values::{
    CommunicatorArgument, NumberOrNone, QuantArgument, RoundingArgument, ScalesArgument,
    accumulation,
};
use crate::failure::Result;
use crate::threads;

/// Where operations run.
#[derive(Debug, Default, Args)]
pub struct PlatformSettings {
    /// auto, or a platform's name; what SWIGLU_PLATFORM says unless given.
    #[arg(long, value_name = "NAME")]
    pub platform: Option<String>,
    /// The platform's device of this number, as `swiglu probe` counts them; what SWIGLU_DEVICE says
    /// unless given, and the first that can be used without either.
    #[arg(long, value_name = "N")]
    pub device: Option<usize>,
}

impl PlatformSettings {
    /// The environment's dispatcher under these settings, with the CPU's threads started.
    ///
    /// # Errors
    /// As [`Dispatcher::from_env`] and [`threads::start`].
    pub fn dispatcher(&self) -> Result<Dispatcher> {
        threads::start()?;
        Ok(self.apply(Dispatcher::from_env()?))
    }

    fn apply(&self, mut dispatcher: Dispatcher) -> Dispatcher {
        if let Some(name) = &self.platform {
            dispatcher = dispatcher.platform(name);
        }
        if self.device.is_some() {
            dispatcher = dispatcher.device_number(self.device);
        }
        dispatcher
    }
}

/// Where matmuls run, and how they may sum.
#[derive(Debug, Args)]
pub struct DeviceSettings {
    #[command(flatten)]
    pub platform: PlatformSettings,
    /// The least exact class of sums that matmuls may use; what SWIGLU_ACCUMULATION says unless
    /// given, and matrix-unit without either.
    #[arg(long, value_name = "CLASS", value_parser = accumulation())]
    pub accumulation: Option<Accumulation>,
}

impl DeviceSettings {
    /// The environment's dispatcher under these settings.
    ///
    /// # Errors
    /// As [`PlatformSettings::dispatcher`].
    pub fn dispatcher(&self) -> Result<Dispatcher> {
        Ok(self.sums(self.platform.dispatcher()?))
    }

    fn sums(&self, dispatcher: Dispatcher) -> Dispatcher {
        match self.accumulation {
            Some(accumulation) => dispatcher.accumulation(accumulation),
            None => dispatcher,
        }
    }
}

/// How a checkpoint's bytes come into memory.
#[derive(Debug, Args)]
pub struct Mapping {
    /// Reads what is needed of the checkpoint's files into memory. Mapped, as they are else, they must
    /// not be cut while they are in use: the system would end the program with SIGBUS.
    #[arg(long)]
    no_mmap: bool,
}

impl Mapping {
    /// What the flag asks for.
    pub const fn mode(&self) -> OpenMode {
        match self.no_mmap {
            false => OpenMode::Map,
            true => OpenMode::Read,
        }
    }
}

/// On how many ranks the MLP runs.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("several").args(["ranks", "communicator"]).multiple(true))]
pub struct RankSettings {
    /// Splits the MLP over so many ranks, on the CPU: each holds its share of the weights, and they
    /// add up their parts of the output. With --communicator mpi, the number of processes that
    /// there must be.
    #[arg(long, value_name = "N", value_parser = ranks)]
    pub ranks: Option<usize>,
    /// What the ranks are; threads unless given.
    #[arg(long, value_enum)]
    pub communicator: Option<CommunicatorArgument>,
    /// How many seconds a rank waits for the others, after which it is an error; 60 unless given.
    #[arg(long, value_name = "SECONDS", value_parser = timeout, requires = "several")]
    pub rank_timeout: Option<f64>,
}

impl RankSettings {
    /// What the ranks are.
    pub fn communicator(&self) -> CommunicatorArgument {
        self.communicator.unwrap_or_default()
    }

    /// How long a rank waits for the others.
    #[cfg(feature = "cpu")]
    pub fn timeout(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64(self.rank_timeout.unwrap_or(60.0))
    }
}

fn ranks(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|&n| n > 0);
    number.ok_or_else(|| "expected a number from 1 on".to_owned())
}

fn timeout(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|s| (0.001..=86_400.0).contains(s));
    number.ok_or_else(|| "expected from 0.001 to 86400".to_owned())
}

/// What an operation's name leaves open.
#[derive(Debug, Args)]
pub struct Settings {
    #[command(flatten)]
    pub parameters: ParameterFlags,
    /// Where results are rounded: official unless given.
    #[arg(long, value_enum)]
    pub rounding: Option<RoundingArgument>,
}

impl Settings {
    /// The operation of this name with these settings.
    ///
    /// # Errors
    /// As [`GatedActivation::from_name`].
    pub fn activation(&self, name: &str) -> swiglu::Result<GatedActivation> {
        let op = GatedActivation::from_name(name, &self.parameters.0)?;
        Ok(op.with_rounding(self.rounding.unwrap_or_default().into()))
    }
}

/// A flag for each of [`Parameter::ALL`], so that a new parameter has its flag without a line here.
#[derive(Debug)]
pub struct ParameterFlags(pub Parameters);

impl Args for ParameterFlags {
    fn augment_args(command: Command) -> Command {
        command.args(Parameter::ALL.map(parameter_flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ParameterFlags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let add = |parameters: Parameters, parameter: Parameter| match matches
            .get_one::<NumberOrNone>(parameter.name())
        {
            None => parameters,
            Some(NumberOrNone(Some(number))) => parameters.with(parameter, *number),
            Some(NumberOrNone(None)) => parameters.without(parameter),
        };
        let none = Parameters::default();
        Ok(Self(Parameter::ALL.into_iter().fold(none, add)))
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn parameter_flag(parameter: Parameter) -> Arg {
    let flag = Arg::new(parameter.name())
        .long(parameter.name().replace('_', "-"))
        .help(parameter.help())
        .allow_negative_numbers(true)
        .requires("op");
    if parameter.may_be_none() {
        return flag
            .value_name("NUMBER|none")
            .value_parser(|text: &str| text.parse::<NumberOrNone>());
    }
    let number = |text: &str| text.parse().map(|n| NumberOrNone(Some(n)));
    flag.value_name("NUMBER").value_parser(number)
}

/// How an activation's output is quantized.
#[derive(Debug, Args)]
pub struct QuantSettings {
    /// Quantizes the output in the same pass.
    #[arg(long, value_enum)]
    pub quant: Option<QuantArgument>,
    /// Elements of a row that share a scale: 128 (unless given), 64 or 32.
    #[arg(long, requires = "quant")]
    pub group: Option<usize>,
    /// How scales are stored; e8m0 unless given.
    #[arg(long, value_enum, requires = "quant")]
    pub scales: Option<ScalesArgument>,
    /// The least magnitude that a scale is computed from; DeepSeek's 1e-4 unless given.
    #[arg(long, requires = "quant", allow_negative_numbers = true)]
    pub floor: Option<f32>,
    /// Whether the output is rounded to the input's type first, as DeepSeek does; true unless given.
    #[arg(long, requires = "quant")]
    pub materialize: Option<bool>,
}

impl QuantSettings {
    /// The quantization, if one is asked for.
    ///
    /// # Errors
    /// As [`Quantization::new`] and [`Quantization::with_floor`].
    pub fn quantization(&self) -> swiglu::Result<Option<Quantization>> {
        let Some(QuantArgument::Fp8) = self.quant else {
            return Ok(None);
        };
        let scales = self.scales.unwrap_or_default();
        Quantization::new(self.group.unwrap_or(128), scales.into())?
            .with_materialize(self.materialize.unwrap_or(true))
            .with_floor(self.floor.unwrap_or(Quantization::FLOOR))
            .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swiglu::{
        Accuracy, ActAndMul, AnyBackend, Backend, Dispatch, Float, GateUp, Matmul, OpenOptions,
        Quantize, Registry, Request, Support, TensorMut,
    };

    use super::*;

    /// A backend from outside that only says what it was opened with.
    struct Outside(OpenOptions);

    impl Backend for Outside {
        swiglu_core::host_memory!();

        fn platform(&self) -> &'static str {
            "outside"
        }

        fn description(&self) -> String {
            format!("{:?}", self.0.device)
        }

        fn accuracy(&self) -> Accuracy {
            Accuracy {
                accumulation: self.0.accumulation,
                ..Accuracy::EXACT
            }
        }

        fn supports(&self, _: &Request) -> Support {
            Support::Native
        }
    }

    impl ActAndMul for Outside {
        fn act_and_mul(
            &self,
            _: &GatedActivation,
            _: GateUp<'_, Self>,
            _: TensorMut<'_, Self>,
        ) -> swiglu::Result<()> {
            Ok(())
        }
    }

    impl Quantize for Outside {}

    impl Matmul for Outside {
        type Weight = swiglu_core::NoWeight;
    }

    impl swiglu_core::Router for Outside {}

    impl swiglu_core::GroupedMatmul for Outside {}

    /// The device that opens under these settings, in an environment that says nothing.
    fn opened(accumulation: Option<Accumulation>, device: Option<usize>) -> Arc<AnyBackend> {
        let mut registry = Registry::new();
        registry.register("outside", |options: &OpenOptions| {
            Ok(Arc::new(AnyBackend::new(Outside(options.clone()))))
        });
        let platform = PlatformSettings {
            platform: Some("outside".to_owned()),
            device,
        };
        let dispatcher = platform.apply(Dispatcher::new(registry, Dispatch::default()));
        let settings = DeviceSettings {
            platform,
            accumulation,
        };
        let dispatcher = settings.sums(dispatcher);
        let device = dispatcher.device(&GatedActivation::deepseek_v4(), Float::BF16);
        Arc::clone(device.unwrap().backend())
    }

    #[test]
    fn the_class_of_sums_that_is_asked_for_reaches_the_backend() {
        let sums = |asked| opened(asked, None).accuracy().accumulation;
        for accumulation in Accumulation::ALL {
            assert_eq!(sums(Some(accumulation)), accumulation);
        }
        assert_eq!(sums(None), Accumulation::MatrixUnit);
    }

    #[test]
    fn the_device_that_is_asked_for_reaches_the_backend() {
        let device = |asked| opened(None, asked).description();
        assert_eq!(device(Some(3)), "Some(3)");
        assert_eq!(device(None), "None");
    }
}
