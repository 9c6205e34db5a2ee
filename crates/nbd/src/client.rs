//! A small blocking client, for tests.
