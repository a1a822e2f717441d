package tfspark.tfrecord

import java.nio.{ByteBuffer, CharBuffer}
import java.nio.charset.{CharsetDecoder, CodingErrorAction}
import java.nio.charset.StandardCharsets.UTF_8

/** Checks whether bytes are UTF-8 text; `UTF8String.isValid` exists only since Spark 4.0. */
object Utf8 {

  private final class Checker {
    private val decoder: CharsetDecoder =
      UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT).onUnmappableCharacter(CodingErrorAction.REPORT)
    private val characters = CharBuffer.allocate(4096)

    /** Decodes in pieces, so that a large value takes no more memory than a small one. */
    def isValid(bytes: ByteBuffer): Boolean = {
      decoder.reset()
      var result = { characters.clear(); decoder.decode(bytes, characters, true) }
      while (result.isOverflow) { characters.clear(); result = decoder.decode(bytes, characters, true) }
      !result.isError
    }
  }

  private val checkers = ThreadLocal.withInitial(() => new Checker)

  def isValid(bytes: Array[Byte], offset: Int, length: Int): Boolean =
    checkers.get.isValid(ByteBuffer.wrap(bytes, offset, length))
}
