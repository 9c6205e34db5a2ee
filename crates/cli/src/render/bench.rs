//! `bench` as text: one table for the cipher, one for the volume.

use sealvol_control::api::bench::{CipherReport, LoadReport, VolumeReport};
use sealvol_control::size::Size;

use crate::table::{left, right, table};

pub(crate) fn cipher(report: &CipherReport) -> String {
    let ciphers = report.ciphers.iter().map(|row| {
        [
            format!("aes-256-xts, units of {}", row.unit),
            mebibytes(row.encrypt_bytes_per_second),
            mebibytes(row.decrypt_bytes_per_second),
        ]
    });
    let copy = mebibytes(report.copy_bytes_per_second);
    let copy = ["memory copy".to_owned(), copy, String::new()];
    let rows: Vec<_> = ciphers.chain([copy]).collect();
    let columns = [
        left("ONE CORE, IN ITS CACHES"),
        right("ENCRYPT MiB/s"),
        right("DECRYPT MiB/s"),
    ];
    table(columns, &rows)
}

pub(crate) fn volume(report: &VolumeReport) -> String {
    let rows: Vec<_> = report.loads.iter().map(load).collect();
    let columns = [
        left("ONE NBD CONNECTION"),
        right("IOPS"),
        right("MiB/s"),
        right("CLIENT"),
        right("SERVER"),
        left("LIMIT"),
    ];
    format!(
        "\n{}\nTemporary volume of {} in {} ({}), deleted again\n",
        table(columns, &rows),
        Size(report.size),
        report.backing.display(),
        report.access
    )
}

fn load(row: &LoadReport) -> [String; 6] {
    let order = if row.random { "random" } else { "in order" };
    let percent =
        |part: Option<u32>| part.map_or_else(|| "?".to_owned(), |part| format!("{part} %"));
    [
        format!(
            "{} {} {order}, {} at once",
            row.operation,
            Size(row.block.into()),
            row.depth
        ),
        row.iops.to_string(),
        mebibytes(row.bytes_per_second),
        percent(row.client_percent),
        percent(row.server_percent),
        row.limit.to_string(),
    ]
}

/// `cryptsetup benchmark`'s unit.
fn mebibytes(bytes_per_second: u64) -> String {
    let tenths = u128::from(bytes_per_second) * 10 / (1 << 20);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use sealvol_control::api::bench::{CipherSpeed, Limit, LoadOperation};

    use super::*;

    #[test]
    fn both_tables_are_aligned() {
        let report = CipherReport {
            bytes_per_call: 65536,
            ciphers: vec![CipherSpeed {
                unit: 512,
                encrypt_bytes_per_second: 3 << 30,
                decrypt_bytes_per_second: (3 << 30) + (1 << 19),
            }],
            copy_bytes_per_second: 40 << 30,
        };
        assert_eq!(
            cipher(&report),
            "\
ONE CORE, IN ITS CACHES    ENCRYPT MiB/s  DECRYPT MiB/s
aes-256-xts, units of 512         3072.0         3072.5
memory copy                      40960.0
"
        );
        let random = LoadReport {
            operation: LoadOperation::Read,
            random: true,
            block: 4096,
            depth: 32,
            iops: 250_000,
            bytes_per_second: 1_024_000_000,
            client_percent: Some(71),
            server_percent: Some(99),
            limit: Limit::Server,
        };
        let ordered = LoadReport {
            operation: LoadOperation::Write,
            random: false,
            block: 1 << 20,
            depth: 8,
            iops: 2000,
            bytes_per_second: 2000 << 20,
            client_percent: None,
            server_percent: None,
            limit: Limit::Unknown,
        };
        let report = VolumeReport {
            size: 256 << 20,
            backing: "/var/lib/sealvol/layers".into(),
            access: "plain calls inline".into(),
            loads: vec![random, ordered],
        };
        assert_eq!(
            volume(&report),
            "
ONE NBD CONNECTION              IOPS   MiB/s  CLIENT  SERVER  LIMIT
read 4K random, 32 at once    250000   976.5    71 %    99 %  server CPU
write 1M in order, 8 at once    2000  2000.0       ?       ?  unknown

Temporary volume of 256M in /var/lib/sealvol/layers (plain calls inline), deleted again
"
        );
    }
}
