//! Refusals: an HTTP status, one of the specification's error codes, and words for a person.

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::json;

use super::answer::{Body, full};
use super::backend::BackendError;
use crate::digest::DigestError;
use crate::error::{Error, one_line};

/// The error codes of the distribution specification ("Error Codes"), and two that Docker's registry has
/// for what is not the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    Unavailable,
    Unknown,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported => "UNSUPPORTED",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unavailable => "UNAVAILABLE",
            Code::Unknown => "UNKNOWN",
        }
    }
}

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: Code,
    message: String,
    detail: serde_json::Value,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Refusal {
        Refusal {
            status,
            code,
            message: message.into(),
            detail: serde_json::Value::Null,
            headers: Vec::new(),
        }
    }

    /// 400.
    pub(super) fn bad(code: Code, message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404.
    pub(super) fn missing(code: Code, message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 429, with a word when to come back.
    pub(super) fn busy(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, message)
            .with(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// 503, with a word when to come back.
    pub(super) fn unavailable(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
            .with(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Refusal {
        self.headers.push((name, value));
        self
    }

    pub(super) fn detail(mut self, detail: serde_json::Value) -> Refusal {
        self.detail = detail;
        self
    }

    /// Whether it is the registry's fault, for the log.
    pub(super) fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    /// Whether nothing came of the client for too long.
    pub(super) fn is_silence(&self) -> bool {
        self.status == StatusCode::REQUEST_TIMEOUT
    }

    /// Whether the disk is full.
    pub(super) fn is_full(&self) -> bool {
        self.status == StatusCode::INSUFFICIENT_STORAGE
    }

    /// Whether there is nothing such.
    pub(super) fn is_missing(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut error = json!({ "code": self.code.as_str(), "message": self.message });
        if !self.detail.is_null() {
            error["detail"] = self.detail;
        }
        let mut response = Response::new(full(json!({ "errors": [error] }).to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// What fails in the store is the registry's own trouble; its words go to the log, since they name files.
impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::DiskFull { .. } => Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                Code::Unavailable,
                "the registry's disk is full: remove images, or ask who runs the cluster",
            ),
            error => {
                tracing::error!(error = %one_line(&error), "the registry can't use its store");
                Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    Code::Unknown,
                    "the registry can't use its store: the node's log says why",
                )
            }
        }
    }
}

impl From<DigestError> for Refusal {
    fn from(error: DigestError) -> Refusal {
        Refusal::bad(Code::DigestInvalid, error.to_string())
    }
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Refusal {
        match error {
            BackendError::Conflict => {
                Refusal::unavailable("too many others write to this repository: try again")
            }
            BackendError::Full(reason) => {
                Refusal::new(StatusCode::INSUFFICIENT_STORAGE, Code::Unavailable, reason)
            }
            BackendError::Unavailable(reason) => Refusal::unavailable(reason),
        }
    }
}
