//! Why a model cannot be loaded or run.
//!
//! Owns the one error type of `mlx/`; what to do about it is the command's business.

use mlx_rs::error::Exception;
use thiserror::Error;

use crate::engine::{ImportError, RunnerError};

/// Why a model cannot be loaded or run.
#[derive(Debug, Error)]
pub enum MlxError {
    #[error("MLX: {0}")]
    Mlx(#[from] Exception),
    #[error("{path}: {reason}")]
    WeightFile { path: String, reason: String },
    #[error("the weights do not fit the configuration: {0}")]
    Weights(String),
    #[error("the adapter does not fit the model: {0}")]
    Adapter(String),
    #[error("{0}")]
    Unsupported(String),
}

impl From<MlxError> for RunnerError {
    fn from(error: MlxError) -> Self {
        RunnerError(error.to_string())
    }
}

impl From<MlxError> for ImportError {
    fn from(error: MlxError) -> Self {
        match error {
            MlxError::Unsupported(why) => Self::WrongBytes(why),
            error => Self::Runner(error.into()),
        }
    }
}

pub(super) type Result<T> = std::result::Result<T, MlxError>;
