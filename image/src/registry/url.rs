//! A file from a URL, for ADD: no registry, but the same connections and the same care where redirects lead.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, HeaderValue, LAST_MODIFIED, LOCATION, USER_AGENT};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::connect::Connector;
use super::settings::Endpoint;
use super::{RegistryClient, RegistryError};
use crate::build::Fetched;
use crate::error::{Error, Result, one_line};

const REDIRECTS_MAX: u32 = 10;

impl RegistryClient {
    /// Writes what `url` gives to `to`, at most so many bytes.
    pub async fn fetch(&self, url: &str, to: &mut dyn std::io::Write, limit_bytes: u64) -> Result<Fetched> {
        let wrong = |reason: String| Error::Source { what: url.to_owned(), reason };
        let refused = |error: RegistryError| wrong(one_line(&error));
        let mut uri: Uri = url.parse().map_err(|_| wrong("it is not a URL".to_owned()))?;
        let home = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.get(&uri, &home).await.map_err(refused)?;
            if answer.status().is_redirection() {
                let target =
                    answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
                uri = redirected(&uri, target)
                    .ok_or_else(|| wrong(format!("it redirects to `{target}`, which is no URL")))?;
                continue;
            }
            if !answer.status().is_success() {
                return Err(wrong(format!("the server answered {}", answer.status())));
            }
            let header =
                |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            let fetched = Fetched {
                modified_s: header(LAST_MODIFIED).and_then(http_date),
                name: header(CONTENT_DISPOSITION).and_then(file_name),
            };
            let mut body = answer.into_body();
            let mut total = 0u64;
            while let Some(frame) = self.in_time(body.frame()).await.map_err(refused)? {
                let frame = frame.map_err(|error| refused(RegistryError::Http(Box::new(error))))?;
                let Some(bytes) = frame.data_ref() else { continue };
                total += bytes.len() as u64;
                if total > limit_bytes {
                    return Err(wrong(format!("it has more than {limit_bytes} bytes")));
                }
                to.write_all(bytes)
                    .map_err(|error| Error::io("write what comes from", url.as_ref(), error))?;
            }
            return Ok(fetched);
        }
        Err(wrong(format!("more than {REDIRECTS_MAX} redirects")))
    }

    async fn get(&self, uri: &Uri, home: &str) -> Result<Response<Incoming>, RegistryError> {
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let is_plain = uri.scheme_str() == Some("http");
        let base = format!("{}://{host}", if is_plain { "http" } else { "https" });
        // Private authorities are by the host's name, as for registries.
        let endpoint = Endpoint { name: host, base, is_plain, is_trusting: false };
        let connector = Connector::new(home, &endpoint, Arc::clone(&self.options))?;
        let client: Client<Connector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        let request = Request::builder()
            .method(Method::GET)
            .uri(uri)
            .header(USER_AGENT, concat!("rorqual/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| RegistryError::Protocol(error.to_string()))?;
        let answered = self.in_time(client.request(request)).await?;
        answered.map_err(|error| RegistryError::Http(Box::new(error)))
    }

    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, RegistryError> {
        let limit: Duration = self.options.idle_timeout;
        let seconds = limit.as_secs();
        tokio::time::timeout(limit, future)
            .await
            .map_err(|_| RegistryError::Timeout { action: "fetching", seconds })
    }
}

fn redirected(from: &Uri, target: &str) -> Option<Uri> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return target.parse().ok();
    }
    let path = target.starts_with('/').then_some(target)?;
    format!("{}://{}{path}", from.scheme_str()?, from.authority()?).parse().ok()
}

/// `attachment; filename="x.tar"`
fn file_name(header: &str) -> Option<String> {
    let value = header.split(';').find_map(|part| part.trim().strip_prefix("filename="))?;
    let name = value.trim_matches('"').rsplit(['/', '\\']).next()?;
    (!matches!(name, "" | "." | "..")).then(|| name.to_owned())
}

/// `Wed, 21 Oct 2015 07:28:00 GMT`, in seconds since 1970 (days after Howard Hinnant's algorithm).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = fields.as_slice() else { return None };
    let day: i64 = day.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = i64::try_from(MONTHS.iter().position(|name| name == month)?).ok()? + 1;
    let year: i64 = year.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let clock: Vec<i64> = time.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [hour, minute, second] = clock[..] else { return None };
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some((era * 146_097 + day_of_era - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        assert_eq!(http_date("Wed, 21 Oct 2015 07:28:00 GMT"), Some(1_445_412_480));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(http_date("yesterday"), None);
        assert_eq!(file_name("attachment; filename=\"../a.tar\"").as_deref(), Some("a.tar"));
        assert_eq!(file_name("inline"), None);
    }

    #[test]
    fn redirects_lead_to_urls_or_paths() {
        let from: Uri = "http://a:1/x/y".parse().unwrap();
        assert_eq!(redirected(&from, "/z").unwrap().to_string(), "http://a:1/z");
        assert_eq!(redirected(&from, "https://b/").unwrap().to_string(), "https://b/");
        assert!(redirected(&from, "ftp://b").is_none());
    }
}
