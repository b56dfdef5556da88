//! Which instruction set runs the kernels: found out once, at run time.

use super::model::Model;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{Isa, Kernel};
use crate::Error;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces a backend.
const VARIABLE: &str = "LLM_OPERATOR_BACKEND";

/// An instruction set that this CPU has, and that the kernels can run on.
///
/// To hold one is proof that the CPU has it: a `Backend` comes from detection only. Without a choice the
/// fastest is used; the environment variable `LLM_OPERATOR_BACKEND` (`portable`, `avx2`, `avx512`)
/// forces one for the whole process, and [`LayerNorm::backend`](crate::LayerNorm::backend) one for a call.
///
/// ```
/// use llm_operator::Backend;
///
/// let names: Vec<_> = Backend::available().iter().map(Backend::name).collect();
/// assert!(names.contains(&"portable"));
/// assert_eq!(Backend::from_name("portable")?.name(), "portable");
/// # Ok::<(), llm_operator::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Backend(Token);

#[derive(Clone, Copy)]
enum Token {
    Model(Model),
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Backend {
    /// The backends that this CPU can run, the slowest first.
    pub fn available() -> Vec<Self> {
        let found = [
            Some(Token::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Token::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Token::Avx512),
        ];
        found.into_iter().flatten().map(Backend).collect()
    }

    /// The executable specification: plain arrays, one lane after the other. Slow; tests compare every
    /// other backend with it, bit for bit.
    pub fn model() -> Self {
        Self(Token::Model(Model))
    }

    /// The backend of a name that [`name`](Self::name) gives, other than `model`.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] where the name is unknown, or the CPU lacks the instruction set.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        let available = Self::available();
        match available.iter().find(|backend| backend.name() == name) {
            Some(backend) => Ok(*backend),
            None => {
                Err(Error::Backend { found: name.to_owned(), available: available.iter().map(Self::name).collect() })
            }
        }
    }

    /// The backend that is used where none is asked for: the one that `LLM_OPERATOR_BACKEND` names, or
    /// else the fastest. The variable is read once.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] where the variable names a backend that is unknown, or that the CPU lacks.
    pub fn chosen() -> Result<Self, Error> {
        static CHOSEN: OnceLock<Result<Backend, Error>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| match std::env::var(VARIABLE) {
                Ok(name) => Backend::from_name(&name),
                Err(std::env::VarError::NotUnicode(name)) => Backend::from_name(&name.to_string_lossy()),
                Err(std::env::VarError::NotPresent) => {
                    Ok(Backend::available().pop().unwrap_or(Backend(Token::Portable(Portable))))
                }
            })
            .clone()
    }

    /// `portable`, `avx2`, `avx512`, or `model`.
    pub fn name(&self) -> &'static str {
        match self.0 {
            Token::Model(_) => "model",
            Token::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512",
        }
    }

    /// Runs a kernel on this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Token::Model(isa) => isa.run(kernel),
            Token::Portable(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(isa) => isa.run(kernel),
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Backend").field(&self.name()).finish()
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Backend {}
