//! Data sets that are recognised by their files, to be named, and what is particular to one of them.

use super::table::{Table, base};
use crate::data::Task;

/// What a data set is called, by what it has: files of these names, or a table of these columns, or folders.
pub(super) fn recognised(names: &[String], tables: &[&Table]) -> Option<&'static str> {
    const FILES: [(&str, &str); 6] = [
        ("HAM10000_metadata.csv", "HAM10000"),
        ("ISIC2018_Task3_Training_GroundTruth.csv", "ISIC-2018, task 3"),
        ("ISIC_2019_Training_GroundTruth.csv", "ISIC-2019"),
        ("ISIC_2020_Training_GroundTruth.csv", "ISIC-2020"),
        ("stage_2_train_labels.csv", "RSNA's pneumonia challenge"),
        ("Data_Entry_2017.csv", "NIH ChestX-ray14"),
    ];
    const COLUMNS: [(&[&str], &str); 5] = [
        (&["image_name", "patient_id", "benign_malignant"], "ISIC-2020"),
        (&["id_code", "diagnosis"], "APTOS-2019"),
        (&["image", "level"], "EyePACS"),
        (&["Path", "Pleural Effusion", "No Finding"], "CheXpert"),
        (&["Image Index", "Finding Labels"], "NIH ChestX-ray14"),
    ];
    const FOLDERS: [(&[&str], &str); 3] = [
        (&["CNV", "DME", "DRUSEN", "NORMAL"], "Kermany's OCT"),
        (&["benign", "malignant", "normal"], "BUSI"),
        (&["XR_ELBOW", "XR_WRIST"], "MURA"),
    ];
    let has_file = |wanted: &str| names.iter().any(|name| base(name) == wanted);
    let has_columns =
        |wanted: &[&str]| tables.iter().any(|table| wanted.iter().all(|name| table.column(name).is_some()));
    let has_folder = |wanted: &str| names.iter().any(|name| folders(name).any(|folder| folder == wanted));
    let of_files = FILES.into_iter().find(|(file, _)| has_file(file)).map(|(_, known)| known);
    let of_columns = || COLUMNS.into_iter().find(|(columns, _)| has_columns(columns)).map(|(_, known)| known);
    let of_folders = || {
        let found = FOLDERS.into_iter().find(|(all, _)| all.iter().all(|folder| has_folder(folder)));
        // Names that others have too: BUSI's masks lie beside their images.
        found
            .filter(|(_, known)| *known != "BUSI" || names.iter().any(|name| name.contains("_mask.")))
            .map(|(_, known)| known)
    };
    of_files.or_else(of_columns).or_else(of_folders)
}

fn folders(name: &str) -> impl Iterator<Item = &str> {
    name.rsplit_once('/').map_or("", |(folders, _)| folders).split('/')
}

/// The patient in whose folder an image is: CheXpert's and MURA's `patient00001`.
pub(super) fn patient(name: &str) -> Option<&str> {
    folders(name).find(|folder| {
        let number = folder.strip_prefix("patient").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// What MURA says of an image by its folder: `study1_positive`.
pub(super) fn study(name: &str) -> Option<u32> {
    folders(name).find_map(|folder| match folder.strip_prefix("study")?.split_once('_')? {
        (_, "negative") => Some(0),
        (_, "positive") => Some(1),
        _ => None,
    })
}

/// The classes of [`study`].
pub(super) const STUDY: ([&str; 2], Task) = (["negative", "positive"], Task::MultiClass);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn data_sets_are_named() {
        let of = |names: &[&str], table: &str| {
            let table = Table::parse(Path::new("x.csv"), table.as_bytes()).unwrap();
            recognised(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), &[&table])
        };
        assert_eq!(of(&["data/HAM10000_metadata.csv", "a.jpg"], "a\n"), Some("HAM10000"));
        assert_eq!(of(&["a.png"], "id_code,diagnosis\n"), Some("APTOS-2019"));
        assert_eq!(of(&["a.jpg"], "Path,Sex,No Finding,Pleural Effusion\n"), Some("CheXpert"));
        let oct = ["CNV", "DME", "DRUSEN", "NORMAL"].map(|class| format!("test/{class}/1.jpeg"));
        assert_eq!(of(&oct.each_ref().map(String::as_str), "a\n"), Some("Kermany's OCT"));
        let three = ["benign/1.png", "malignant/1.png", "normal/1.png"];
        assert_eq!(of(&three, "a\n"), None);
        assert_eq!(of(&[&three[..], &["benign/1_mask.png"]].concat(), "a\n"), Some("BUSI"));
    }

    #[test]
    fn folders_say_patients_and_studies() {
        let name = "MURA-v1.1/train/XR_HAND/patient00012/study2_positive/image1.png";
        assert_eq!((patient(name), study(name)), (Some("patient00012"), Some(1)));
        assert_eq!((patient("patients/patient/1.png"), study("study1/study2_x/1.png")), (None, None));
    }
}
