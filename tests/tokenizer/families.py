"""Small tokenizers of the families that models come with, built here from their parts."""

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quire.assets import shipped_model_path

_WORDS = ["▁the", "▁a", "he", "th", "▁é", "né", "你", "▁你好", "\u0301", "\ufffd", "▁▁", "'s", ".", ",", "\n"]


def byte_level() -> Tokenizer:
    """The shipped model's: byte-level BPE."""
    return Tokenizer.from_file(str(shipped_model_path() / "tokenizer.json"))


def byte_fallback() -> Tokenizer:
    """SentencePiece BPE as Llama-2 has it: unknown characters become byte tokens."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *string.ascii_lowercase,
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *_WORDS]))}
    merges = [("t", "h"), ("h", "e"), ("▁", "a"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with a Metaspace decoder, as T5 and many others have it."""
    pieces = ["<unk>", "</s>", "▁", *string.ascii_lowercase, *_WORDS]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


def word_piece() -> Tokenizer:
    """WordPiece, whose decoder puts spaces between words and takes them from before punctuation."""
    pieces = [
        "[UNK]",
        "[SEP]",
        "play",
        "##ing",
        "##s",
        "do",
        "n",
        "'",
        "t",
        "not",
        "'s",
        ".",
        ",",
        "!",
        "ich",
        "你",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken("[SEP]", special=True)])
    return tokenizer


def word_level() -> Tokenizer:
    """Words with no decoder at all: the library joins them with spaces."""
    words = [f"w{i}" for i in range(999)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


FAMILIES = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "metaspace": metaspace,
    "wordpiece": word_piece,
    "no decoder": word_level,
}
