//! What a repository holds, as the hub's listing describes it.
//!
//! Owns the listing's JSON and what may be believed of it: hashes become file names, so only plain
//! ones pass. Which of the files are needed is decided elsewhere.

use serde::Deserialize;

/// What a repository holds at one commit.
#[derive(Debug)]
pub(super) struct RepoListing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// A file as the listing describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    /// Not every mirror tells size and hash in the listing; the file itself is asked then.
    pub(super) content: Option<Content>,
}

/// What a file's bytes must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    /// Names the blob in the cache: a SHA-256 for large files, git's SHA-1 for small ones, or
    /// whatever a mirror calls its version.
    pub(super) etag: String,
    pub(super) size_bytes: Option<u64>,
}

/// Whether a text is safe as the name of a blob or a snapshot.
pub(super) fn is_plain_hash(text: &str) -> bool {
    const MAX_HASH_BYTES: usize = 128;
    (1..=MAX_HASH_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Reads the hub's description of a repository.
pub(super) fn parse_listing(text: &str) -> Result<RepoListing, String> {
    #[derive(Deserialize)]
    struct Info {
        sha: String,
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sibling {
        rfilename: String,
        size: Option<u64>,
        blob_id: Option<String>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        sha256: String,
        size: u64,
    }
    let info: Info = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !is_plain_hash(&info.sha) {
        return Err(format!("its commit is {:?}", info.sha));
    }
    let file = |sibling: Sibling| {
        let content = match (sibling.lfs, sibling.blob_id) {
            (Some(lfs), _) => Some(Content { etag: lfs.sha256, size_bytes: Some(lfs.size) }),
            (None, Some(etag)) => Some(Content { etag, size_bytes: sibling.size }),
            (None, None) => None,
        };
        RemoteFile {
            name: sibling.rfilename,
            content: content.filter(|content| is_plain_hash(&content.etag)),
        }
    };
    Ok(RepoListing { commit: info.sha, files: info.siblings.into_iter().map(file).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_the_hash_that_the_bytes_must_have() {
        let listing = parse_listing(
            r#"{"sha":"c0ffee","siblings":[
                {"rfilename":"a.json","blobId":"0a","size":3},
                {"rfilename":"m.safetensors","blobId":"0b","size":5,"lfs":{"sha256":"ff","size":5,"pointerSize":1}},
                {"rfilename":"plain.json"},
                {"rfilename":"evil.json","blobId":"../../x","size":3}]}"#,
        )
        .unwrap();
        let content = |etag: &str, size| Some(Content { etag: etag.to_string(), size_bytes: Some(size) });
        let contents: Vec<_> = listing.files.into_iter().map(|file| file.content).collect();
        assert_eq!(contents, [content("0a", 3), content("ff", 5), None, None]);
        for bad in ["<html>", "{}", r#"{"sha":"../..","siblings":[]}"#] {
            assert!(parse_listing(bad).is_err(), "{bad}");
        }
    }
}
