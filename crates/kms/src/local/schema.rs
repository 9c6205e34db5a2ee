//! The tables, and how those of an earlier format become those of this one. `LOCAL.md` says what is in them.

/// Version of the format.
pub(super) const FORMAT: i64 = 6;

/// What a new database is made with.
pub(super) const SCHEMA: [&str; 5] = [KEYS, ALIASES, IMPORTS, POLICIES, TOMBSTONES];

/// What each format is brought to the next one by; the number is that of the former.
pub(super) const STEPS: [(i64, &str); 5] = [
    (1, FROM_1),
    (2, ALIASES),
    (3, IMPORTS),
    (4, POLICIES),
    (5, TOMBSTONES),
];

const KEYS: &str = "
CREATE TABLE meta (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    format        INTEGER NOT NULL,
    id            BLOB NOT NULL CHECK (length(id) = 16),
    created       INTEGER NOT NULL,
    master_key    TEXT NOT NULL CHECK (master_key IN ('raw', 'passphrase')),
    argon2_salt   BLOB,
    argon2_memory INTEGER,
    argon2_passes INTEGER,
    argon2_lanes  INTEGER,
    master_check  BLOB NOT NULL,
    changes       INTEGER NOT NULL DEFAULT 0,
    counted       INTEGER NOT NULL DEFAULT 0,
    seen_boot     BLOB NOT NULL DEFAULT x'00000000000000000000000000000000' CHECK (length(seen_boot) = 16),
    seen_running  INTEGER NOT NULL DEFAULT 0,
    seen_wall     INTEGER NOT NULL DEFAULT 0,
    mac           BLOB NOT NULL DEFAULT x''
) STRICT;
CREATE TABLE keys (
    id            BLOB PRIMARY KEY CHECK (length(id) = 16),
    name          TEXT NOT NULL UNIQUE,
    state         TEXT NOT NULL CHECK (state IN ('enabled', 'disabled', 'pending-deletion', 'pending-import', 'destroying')),
    created       INTEGER NOT NULL,
    rotation_days INTEGER CHECK (rotation_days > 0),
    rotate_wall    INTEGER,
    rotate_counted INTEGER,
    delete_wall    INTEGER,
    delete_counted INTEGER
) STRICT;
CREATE TABLE versions (
    key_id        BLOB NOT NULL REFERENCES keys (id),
    version       INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    created       INTEGER NOT NULL,
    cause         TEXT NOT NULL CHECK (cause IN ('created', 'on-demand', 'automatic')),
    sealed        BLOB NOT NULL,
    PRIMARY KEY (key_id, version)
) STRICT;
";

/// New in format 3.
const ALIASES: &str = "
CREATE TABLE aliases (
    name    TEXT PRIMARY KEY,
    key_id  BLOB NOT NULL REFERENCES keys (id),
    created INTEGER NOT NULL
) STRICT;
";

/// New in format 4.
const IMPORTS: &str = "
CREATE TABLE external_keys (
    key_id          BLOB PRIMARY KEY REFERENCES keys (id),
    material        TEXT NOT NULL CHECK (material IN ('none', 'imported', 'going')),
    fingerprint     BLOB CHECK (length(fingerprint) = 32),
    expires_wall    INTEGER,
    expires_counted INTEGER
) STRICT;
CREATE TABLE import_keys (
    key_id          BLOB PRIMARY KEY REFERENCES keys (id),
    id              BLOB NOT NULL CHECK (length(id) = 16),
    algorithm       TEXT NOT NULL,
    expires_wall    INTEGER NOT NULL,
    expires_counted INTEGER NOT NULL,
    sealed          BLOB NOT NULL
) STRICT;
";

/// New in format 5.
const POLICIES: &str = "
CREATE TABLE policies (
    key_id BLOB PRIMARY KEY REFERENCES keys (id),
    policy TEXT NOT NULL
) STRICT;
";

/// New in format 6. A pair that other volumes share has no place in it: it would end them, too.
const TOMBSTONES: &str = "
CREATE TABLE tombstones (
    name    TEXT NOT NULL CHECK (name IN ('sealvol:volume', 'sealvol:data-key')),
    value   TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (name, value)
) STRICT;
";

/// What makes format 2 of format 1, in which nothing was authenticated and keys had one version.
const FROM_1: &str = "
ALTER TABLE meta ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN seen_boot BLOB NOT NULL DEFAULT x'00000000000000000000000000000000' CHECK (length(seen_boot) = 16);
ALTER TABLE meta ADD COLUMN seen_running INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN seen_wall INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN mac BLOB NOT NULL DEFAULT x'';
CREATE TABLE keys_2 (
    id            BLOB PRIMARY KEY CHECK (length(id) = 16),
    name          TEXT NOT NULL UNIQUE,
    state         TEXT NOT NULL CHECK (state IN ('enabled', 'disabled', 'pending-deletion', 'pending-import', 'destroying')),
    created       INTEGER NOT NULL,
    rotation_days INTEGER CHECK (rotation_days > 0),
    rotate_wall    INTEGER,
    rotate_counted INTEGER,
    delete_wall    INTEGER,
    delete_counted INTEGER
) STRICT;
CREATE TABLE versions_2 (
    key_id        BLOB NOT NULL REFERENCES keys_2 (id),
    version       INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    created       INTEGER NOT NULL,
    cause         TEXT NOT NULL CHECK (cause IN ('created', 'on-demand', 'automatic')),
    sealed        BLOB NOT NULL,
    PRIMARY KEY (key_id, version)
) STRICT;
INSERT INTO keys_2 (id, name, state, created) SELECT id, name, state, created FROM keys;
INSERT INTO versions_2 SELECT key_id, version, created, 'created', sealed FROM versions;
DROP TABLE versions;
DROP TABLE keys;
ALTER TABLE keys_2 RENAME TO keys;
ALTER TABLE versions_2 RENAME TO versions;
";

/// What the MAC covers, in this order, and since which format: every column but the MAC itself and the sealed material, which is
/// authenticated by what seals it.
pub(super) const COVERED: [(i64, &str, &str); 8] = [
    (
        2,
        "meta",
        "SELECT format, id, created, master_key, argon2_salt, argon2_memory, argon2_passes, argon2_lanes, master_check, \
         changes, counted, seen_boot, seen_running, seen_wall FROM meta",
    ),
    (
        2,
        "keys",
        "SELECT id, name, state, created, rotation_days, rotate_wall, rotate_counted, delete_wall, delete_counted \
         FROM keys ORDER BY id",
    ),
    (
        2,
        "versions",
        "SELECT key_id, version, created, cause FROM versions ORDER BY key_id, version",
    ),
    (
        3,
        "aliases",
        "SELECT name, key_id, created FROM aliases ORDER BY name",
    ),
    (
        4,
        "external_keys",
        "SELECT key_id, material, fingerprint, expires_wall, expires_counted FROM external_keys ORDER BY key_id",
    ),
    (
        4,
        "import_keys",
        "SELECT key_id, id, algorithm, expires_wall, expires_counted FROM import_keys ORDER BY key_id",
    ),
    (
        5,
        "policies",
        "SELECT key_id, policy FROM policies ORDER BY key_id",
    ),
    (
        6,
        "tombstones",
        "SELECT name, value, created FROM tombstones ORDER BY name, value",
    ),
];
