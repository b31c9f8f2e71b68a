use super::*;
use crate::test_authority::Authority;

fn pair(authority: &Authority) -> KeyPair {
    let (certificate, key) = authority.signs();
    KeyPair { certificates: certificate.into_bytes(), key: Secret(key.into_bytes()) }
}

#[test]
fn what_cannot_be_used_is_told_before_anybody_connects() {
    let authority = Authority::new();
    let (good, other, authorities) = (pair(&authority), pair(&authority), authority.pem().into_bytes());
    assert!(ServerTls::new(&good, Some(&authorities)).unwrap().mutual);
    assert!(!ServerTls::new(&good, None).unwrap().mutual);
    assert!(!ClientTls::new(Some(&good), Some(&authorities)).unwrap().trusts_the_system());
    assert!(ClientTls::new(None, None).unwrap().trusts_the_system());

    let mixed = KeyPair { key: other.key, ..good.clone() };
    let keyless = KeyPair { key: Secret(good.certificates.clone()), ..good.clone() };
    let bare = KeyPair { certificates: b"-----BEGIN NOTHING".to_vec(), ..good.clone() };
    let text = |result: Result<(), TlsError>| result.unwrap_err().to_string();
    let server = |own: &KeyPair, authorities: Option<&[u8]>| text(ServerTls::new(own, authorities).map(drop));
    let client = |own: &KeyPair, authorities: Option<&[u8]>| text(ClientTls::new(Some(own), authorities).map(drop));
    for say in [&server as &dyn Fn(&KeyPair, Option<&[u8]>) -> String, &client] {
        assert!(say(&mixed, None).starts_with("certificate and key cannot be used: "), "{}", say(&mixed, None));
        assert_eq!(say(&keyless, None), "the key file holds no private key");
        assert_eq!(say(&bare, None), "the certificates hold none, or something else");
        assert_eq!(say(&good, Some(b"")), "the authorities' file holds no certificate, or something else");
    }
}

#[test]
fn nothing_of_a_key_is_shown() {
    let pair = pair(&Authority::new());
    let shown = format!("{pair:?} {:?} {:?}", ServerTls::new(&pair, None).unwrap(), ClientTls::new(Some(&pair), None).unwrap());
    assert!(!shown.contains("PRIVATE") && !shown.contains("Key("), "{shown}");
}
