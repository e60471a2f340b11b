from utils.checksums import sha256


def test_the_checksum_of_a_known_message(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # NIST's example of one block.
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
