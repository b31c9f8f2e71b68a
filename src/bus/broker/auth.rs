//! Who may connect.

use dewar_protocol::Secret;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::BrokerAuth;

/// What a client says of itself in CONNECT. What it does not say is as nats-server assumes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct ClientOptions {
    /// Wants `+OK` for every operation.
    pub(super) verbose: bool,
    /// Wants to be told of unusual subjects.
    pub(super) pedantic: bool,
    /// Wants its own messages back where it is subscribed to them.
    pub(super) echo: bool,
    /// Knows headers.
    pub(super) headers: bool,
    /// Wants to be told when nobody listens to a request.
    pub(super) no_responders: bool,
    /// 1 and more: understands an INFO that comes later.
    pub(super) protocol: i64,
    /// Name for the log.
    pub(super) name: Option<String>,
    user: Option<String>,
    pass: Option<Secret<String>>,
    auth_token: Option<Secret<String>>,
}

impl ClientOptions {
    /// From the JSON of a CONNECT. It has to be an object: serde would take an array for one, too.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        if json.first() == Some(&b'{') { serde_json::from_slice(json).ok() } else { None }
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            echo: true,
            headers: false,
            no_responders: false,
            protocol: 0,
            name: None,
            user: None,
            pass: None,
            auth_token: None,
        }
    }
}

impl BrokerAuth {
    /// Whether a client must show anything at all.
    pub(super) fn is_required(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether a client has shown what it must. Takes the same time for every wrong value of the same length.
    pub(super) fn admits(&self, client: &ClientOptions) -> bool {
        match self {
            Self::None => true,
            Self::Token(token) => bool::from(same(token.expose(), exposed(client.auth_token.as_ref()))),
            Self::UserPassword { user, password } => {
                let user_matches = same(user, client.user.as_deref().unwrap_or_default());
                bool::from(user_matches & same(password.expose(), exposed(client.pass.as_ref())))
            }
        }
    }
}

fn exposed(secret: Option<&Secret<String>>) -> &str {
    secret.map_or("", |secret| secret.expose())
}

fn same(wanted: &str, shown: &str) -> subtle::Choice {
    wanted.as_bytes().ct_eq(shown.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(json: &str) -> ClientOptions {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_the_right_credentials_are_admitted() {
        let secret = |text: &str| Secret(text.to_owned());
        let token = BrokerAuth::Token(secret("s3cret"));
        let user = BrokerAuth::UserPassword { user: "cf".to_owned(), password: secret("pw") };
        let table = [
            (&token, r#"{"auth_token":"s3cret"}"#, true),
            (&token, r#"{"auth_token":"s3creT"}"#, false),
            (&token, r#"{"auth_token":null}"#, false),
            (&token, r#"{"user":"s3cret","pass":"s3cret"}"#, false),
            (&user, r#"{"user":"cf","pass":"pw"}"#, true),
            (&user, r#"{"user":"cf","pass":"pwx"}"#, false),
            (&user, r#"{"user":"cg","pass":"pw"}"#, false),
            (&user, r#"{"user":"cf"}"#, false),
            (&user, "{}", false),
            (&BrokerAuth::None, r#"{"user":"anybody"}"#, true),
        ];
        for (auth, shown, admitted) in table {
            assert_eq!(auth.admits(&client(shown)), admitted, "{auth:?} {shown}");
        }
    }

    #[test]
    fn unsaid_options_are_those_of_an_old_client() {
        let options = client("{}");
        assert!(options.verbose && options.pedantic && options.echo);
        assert!(!options.headers && !options.no_responders);
        assert!(!format!("{:?}", client(r#"{"pass":"hunter2","auth_token":"hunter3"}"#)).contains("hunter"));
    }
}
