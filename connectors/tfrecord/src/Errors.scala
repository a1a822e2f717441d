package tfspark.tfrecord

import java.io.IOException

/** What is wrong with the bytes of one record; whoever knows the file and the offset adds them. Never leaves a task. */
final class RecordFault(message: String) extends RuntimeException(message, null, false, false)

/**
 * Errors as they leave a task: of classes that every JVM knows.
 *
 * What a task throws is deserialized by the driver, whose class loader does not know the classes of a jar that was
 * added to a running session. Spark then reports `UnknownReason` instead of the error.
 */
object Errors {

  /** A file or a record that cannot be read or written; the message names it. */
  def of(message: String, cause: Throwable = null): IOException = new IOException(message, known(cause))

  /** Returns what an exception says, or its class where it says nothing. */
  def reason(e: Throwable): String = Option(e.getMessage).filter(_.nonEmpty).getOrElse(e.getClass.getSimpleName)

  /** Returns the cause if all of it is Java's own. */
  private def known(cause: Throwable): Throwable = {
    def isJava(e: Throwable): Boolean =
      e == null || (e.getClass.getName.startsWith("java.") && isJava(e.getCause) && e.getSuppressed.forall(isJava))
    if (isJava(cause)) cause else null
  }
}
